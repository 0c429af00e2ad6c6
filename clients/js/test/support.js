// What tests share: a real server, tokens, a proxy that cuts, holds back or blocks, and Chromium.
import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, connect as dial } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const PATIENCE_MS = 60_000;
export const BINARY = process.env.TIDINGS_BIN;
const SECRET = "a secret for tests that is long enough for HS256";

/** Waits for a condition; returns its value. */
export async function until(condition, what = condition) {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (performance.now() > deadline) throw new Error(`in vain: ${what}`);
    await new Promise((next) => setTimeout(next, 20));
  }
}

/** Returns a token of school 1. */
export function token(role = "viewer", seconds = 3600, claims = {}) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const body = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: "test", school_id: 1, role, iat: now, exp: now + seconds, ...claims })}`;
  return `${body}.${createHmac("sha256", SECRET).update(body).digest("base64url")}`;
}

/** A server of its own, in a folder of its own. `stop` and `start` keep its folder and port. */
export async function tidings(settings = {}) {
  if (!BINARY) throw new Error("TIDINGS_BIN must name the server's binary, such as target/debug/tidings");
  const folder = mkdtempSync(join(tmpdir(), "tidings-js-"));
  let port = 0;
  let child;
  const own = {
    url: "",
    get port() {
      return port;
    },
    async start() {
      const environment = {
        PATH: process.env.PATH,
        TMPDIR: tmpdir(),
        ROCKET_PORT: String(port),
        TIDINGS_DATA_DIR: join(folder, "data"),
        TIDINGS_JWT_SECRET: SECRET,
        TIDINGS_RECONNECT_SPREAD_MS: "200",
        ...settings,
      };
      child = spawn(BINARY, ["serve"], { cwd: folder, env: environment, stdio: ["ignore", "pipe", "pipe"] });
      let output = "";
      child.stderr.on("data", (piece) => {
        output += piece;
      });
      child.stdout.on("data", (piece) => {
        output += piece;
      });
      const exited = once(child, "exit");
      await until(() => {
        if (child.exitCode !== null) throw new Error(`the server has ended: ${output}`);
        return /listens on (http:\S+)/.exec(output);
      }, "the server listens");
      own.url = /listens on (http:\S+)/.exec(output)[1];
      port = Number(new URL(own.url).port);
      own.exited = exited;
    },
    /** `SIGTERM` tells every stream; `SIGKILL` tells nobody. */
    async stop(signal = "SIGTERM") {
      if (child?.exitCode === null && child.signalCode === null) {
        child.kill(signal);
        await own.exited;
      }
    },
    /** Forgets everything, as after the loss of the disk. The server must have been stopped. */
    forget() {
      rmSync(join(folder, "data"), { recursive: true });
    },
    async remove() {
      await own.stop("SIGKILL");
      rmSync(folder, { recursive: true, force: true });
    },
    async call(method, path, body, role = "worker") {
      const answer = await fetch(own.url + path, {
        method,
        headers: { Authorization: `Bearer ${token(role)}`, "Content-Type": "application/json", Accept: "application/json" },
        body: body && JSON.stringify(body),
      });
      const json = await answer.json();
      if (!answer.ok) throw Object.assign(new Error(`${method} ${path}: ${JSON.stringify(json)}`), { status: answer.status });
      return json;
    },
    post: (path, body = {}) => own.call("POST", `/api/${path}`, body),
    /** Returns the events of a scope since the start of the log, as the server tells them over the API. */
    async log(scope) {
      const { messages } = await own.call("GET", `/events/${scope}?wait=0`);
      const start = messages[0].cursor;
      const events = [];
      let cursor = start;
      for (;;) {
        const answer = await own.call("GET", `/events/${scope}?tick_ms=0&wait=0&cursor=${cursor}`);
        const more = answer.messages.filter(({ seq }) => seq);
        if (!more.length) return events;
        events.push(...more);
        cursor = answer.cursor;
      }
    },
  };
  await own.start();
  return own;
}

/**
 * A TCP proxy in front of a port. `mode` decides about new connections, and about the bytes of old ones:
 * `pass`; `refuse` closes at once; `freeze` keeps connections open without a byte; `no-sse` holds back responses of SSE; `no-upgrade` breaks WebSockets.
 */
export async function proxy(target) {
  const pairs = new Set();
  const own = { modes: new Set(), seen: [] };
  const server = createServer((client) => {
    if (own.modes.has("refuse")) return client.destroy();
    const upstream = dial(target(), "127.0.0.1");
    const pair = [client, upstream];
    pairs.add(pair);
    let mute = false;
    const end = () => {
      for (const socket of pair) socket.destroy();
      pairs.delete(pair);
    };
    for (const socket of pair) {
      socket.on("error", end);
      socket.on("close", end);
    }
    client.on("data", (bytes) => {
      if (own.modes.has("freeze")) return;
      const text = bytes.toString("latin1");
      const kind = /^upgrade: websocket/im.test(text) ? "websocket" : /^accept: (.*)$/im.exec(text)?.[1].trim();
      const method = /^([A-Z]+) \S+ HTTP/.exec(text)?.[1];
      if (kind && method) {
        own.seen.push(`${method} ${kind}`);
        mute = kind === "text/event-stream" && own.modes.has("no-sse");
        if (kind === "websocket" && own.modes.has("no-upgrade"))
          return client.end("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
      }
      upstream.write(bytes);
    });
    upstream.on("data", (bytes) => {
      if (!mute && !own.modes.has("freeze")) client.write(bytes);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return Object.assign(own, {
    url: `http://127.0.0.1:${server.address().port}`,
    /** Cuts every connection in the middle of whatever it does. */
    cut() {
      for (const pair of pairs) for (const socket of pair) socket.resetAndDestroy();
    },
    async stop() {
      server.close();
      for (const pair of pairs) for (const socket of pair) socket.destroy();
      await once(server, "close");
    },
  });
}

/** Starts Chromium with a profile of its own, which is removed when it is closed. */
export async function chromium(...flags) {
  // Here, because most tests need none of it.
  const { default: puppeteer } = await import("puppeteer-core");
  const executablePath = process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  const profile = mkdtempSync(join(tmpdir(), "tidings-chromium-"));
  const always = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
  const quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];
  const browser = await puppeteer.launch({ executablePath, headless: true, userDataDir: profile, args: [...always, ...quiet, ...flags] });
  const close = browser.close.bind(browser);
  browser.close = async () => {
    await close();
    rmSync(profile, { recursive: true, force: true });
  };
  return browser;
}
