// A server that follows a script of clients/vectors/watch.json, on one transport.
import { once } from "node:events";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

/** An event that ends a case: when it arrives, everything before it has arrived. It has no cursor, so it moves nothing. */
export const SENTINEL = { type: "sentinel", seq: 4_000_000_000 };
const HEARTBEAT_MS = 200;

export async function scripted(connections) {
  const requests = [];
  const open = new Set();
  const timers = new Set();
  let held = []; // how to send a sentinel to each connection that is open after the script
  let endedAt;
  let quietSince;
  const server = createServer((request, response) => {
    if (request.method === "HEAD") return response.end();
    const step = arrive(request);
    const json = request.headers.accept === "application/json";
    if (!step) return json ? hold(poller(response)) : hold(streamer(response));
    if (step.status) {
      const type = step.problem ? "application/problem+json" : "text/html";
      response.writeHead(step.status, { "Content-Type": type, ...step.headers });
      response.end(step.problem ? JSON.stringify(step.problem) : step.body);
      ended();
      return;
    }
    if (json) {
      const { send } = step;
      const cursor = send.findLast(({ type, seq }) => seq || type === "ready")?.cursor ?? cursorOf(request).value ?? send[0].cursor;
      response.writeHead(200, { "Content-Type": "application/json" });
      response.end(JSON.stringify({ messages: send, cursor }));
      ended();
      return;
    }
    const write = streamer(response);
    end(step, write, () => response.socket.destroy(), () => response.end(), response);
  });
  const streamer = (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.flushHeaders();
    return (message, written) => {
      const name = message.type === "heartbeat" ? "event: heartbeat\n" : "";
      const id = message.cursor && message.type !== "connected" ? `id: ${message.cursor}\n` : "";
      response.write(`${name}${id}data: ${message.raw ?? JSON.stringify(message)}\n\n`, written);
    };
  };
  const poller = (response) => (message) => {
    if (message.type === "heartbeat") return;
    response.writeHead(200, { "Content-Type": "application/json" });
    response.end(JSON.stringify({ messages: [message], cursor: null }));
  };
  const sockets = new WebSocketServer({ server, handleProtocols: (protocols) => [...protocols][0] });
  sockets.on("connection", (socket, request) => {
    const write = (message, written) => socket.send(message.raw ?? JSON.stringify(message), written);
    const step = arrive(request);
    if (!step) return hold(write);
    end(step, write, () => request.socket.destroy(), () => socket.close(step.close_code), socket);
  });
  server.on("connection", (socket) => {
    open.add(socket);
    socket.on("close", () => open.delete(socket));
  });

  const arrive = (request) => {
    const step = connections[requests.length];
    const url = new URL(request.url, "http://x");
    requests.push({
      url,
      cursor: cursorOf(request),
      token:
        request.headers.authorization?.replace("Bearer ", "") ?? request.headers["sec-websocket-protocol"]?.replace("bearer.", ""),
      waited: endedAt === undefined ? 0 : performance.now() - endedAt,
      quiet: performance.now() - quietSince,
    });
    endedAt = quietSince = undefined;
    return step;
  };
  const ended = () => {
    endedAt = performance.now();
    quietSince ??= endedAt;
  };
  const hold = (write) => held.push(write);
  const end = (step, write, cut, close, connection) => {
    // What was written must be on its way before the cut.
    const written = () => {
      if (step.end !== "cut" && step.end !== "close") return;
      if (step.end === "cut") cut();
      else close();
      ended();
    };
    for (const message of step.send) write(message, message === step.send.at(-1) ? written : undefined);
    quietSince = performance.now();
    const last = step === connections.at(-1);
    if (step.end === "open") {
      // Heartbeats go on. A reader that ends the connection itself is on its own from then on.
      connection.on("close", ended);
      const timer = setInterval(() => write({ type: "heartbeat", timestamp: "2026-03-01T09:30:00.000Z" }), HEARTBEAT_MS);
      timers.add(timer);
      connection.on("close", () => clearInterval(timer));
      if (last) hold(write);
    } else if (step.end === "silence") connection.on("close", ended);
  };

  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    requests,
    /** Sends the sentinel where a connection is open after the script. */
    finish: () => {
      for (const write of held) write(SENTINEL);
      const any = held.length > 0;
      held = [];
      return any;
    },
    stop: async () => {
      for (const timer of timers) clearInterval(timer);
      sockets.close();
      server.close();
      for (const socket of open) socket.destroy();
      await once(server, "close");
    },
  };
}

function cursorOf(request) {
  const query = new URL(request.url, "http://x").searchParams;
  const found = [
    ["Last-Event-ID", request.headers["last-event-id"]],
    ["lastEventId", query.get("lastEventId")],
    ["cursor", query.get("cursor")],
  ].find(([, value]) => value);
  return { place: found?.[0], value: found?.[1] ?? null };
}
