// How long a watch or a report waits, and for whom: the gap between long polls, what the server asks for, no clock, and nobody once it is closed.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { report, watch } from "../dist/index.js";
import { tidings, token, until } from "./support.js";

// Node has no event `online`.
const network = new EventTarget();
globalThis.addEventListener = network.addEventListener.bind(network);

/** A server that answers each request by `answer(request, response, index)`. */
async function answering(answer) {
  const own = { requests: [] };
  const server = createServer((request, response) => {
    own.requests.push({ at: performance.now(), method: request.method });
    answer(request, response, own.requests.length - 1);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  own.url = `http://127.0.0.1:${server.address().port}`;
  own.stop = () => {
    server.closeAllConnections();
    server.close();
  };
  return own;
}

const READY = { type: "ready", cursor: "e-1-x" };
const CONNECTED = { type: "connected", heartbeat_secs: 15 };
const begin = (response, ...messages) => {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  for (const message of [CONNECTED, READY, ...messages]) response.write(`data: ${JSON.stringify(message)}\n\n`);
};
const closing = (retry_ms) => ({ type: "closing", code: 1001, reason: "the server shuts down", reconnect: true, retry_ms });
const sooner = (promise, ms) =>
  Promise.race([promise, new Promise((_, failed) => setTimeout(() => failed(new Error(`not within ${ms} ms`)), ms).unref())]);

describe("waits", { concurrency: true }, () => {
  let real;
  before(async () => {
    real = await tidings();
  });
  after(() => real.remove());

  test("two long polls begin at least `pollGapMs` apart, and what happens meanwhile comes with the next one, once and in order", async () => {
    const GAP_MS = 700;
    await real.post("jobs", { job_id: "gap", job_type: "gap" });
    await real.post("jobs/gap/start");
    const starts = [];
    const heard = [];
    const watching = watch("jobs/gap", {
      server: real.url,
      token: () => token(),
      transports: ["poll"],
      query: { tick_ms: 0 },
      pollGapMs: GAP_MS,
      fetch: (url, options) => {
        starts.push(performance.now());
        return fetch(url, options);
      },
      onTiding: ({ seq, snapshot }) => seq && !snapshot && heard.push({ seq, at: performance.now() }),
    });
    await until(() => watching.getSnapshot().ready);
    const told = [];
    while (starts.length < 6) {
      const { seq } = await real.post("jobs/gap/progress", { message: String(told.length) });
      told.push({ seq, at: performance.now() });
    }
    await until(() => heard.length === told.length);
    assert.deepEqual(
      heard.map(({ seq }) => seq),
      told.map(({ seq }) => seq),
    );
    // One of them can be noted late on a loaded machine, but not all.
    const took = starts.at(-1) - starts[0];
    assert.ok(took > GAP_MS * (starts.length - 2), `${starts.length} polls within ${took} ms`);
    watching.close();
    await watching.finished;
  });

  test("a wait that the server asks for is told, and neither a network that returns nor its length cuts it short", async () => {
    const RETRY_MS = 1500;
    const server = await answering((_, response, index) => {
      if (index === 0) begin(response, closing(RETRY_MS));
      else if (index === 1) response.writeHead(503, { "Retry-After": "9999999999" }).end();
      else begin(response);
    });
    const watching = watch("jobs", { server: server.url });
    const { promise: closed, resolve } = withResolvers();
    watching.subscribe(() => watching.getSnapshot().error && resolve(performance.now()));
    const at = await closed;
    assert.equal(watching.getSnapshot().error.retryMs, RETRY_MS);
    network.dispatchEvent(new Event("online"));
    await until(() => server.requests.length === 2);
    assert.ok(server.requests[1].at - at > RETRY_MS - 50, `${server.requests[1].at - at} ms`);
    await until(() => watching.getSnapshot().error?.status === 503);
    network.dispatchEvent(new Event("online"));
    // Three times as long as the shortest wait would be.
    const refused = performance.now();
    await until(() => server.requests.length > 2 || performance.now() - refused > 1500);
    assert.equal(server.requests.length, 2);
    watching.close();
    await sooner(watching.finished, 3000);
    server.stop();
  });

  test("a watch that is closed ends at once while it asks whether the server or the transport is at fault", async () => {
    // A stream breaks, and the ordinary request is not answered.
    const server = await answering(({ method }, response) => method === "GET" && response.destroy());
    const watching = watch("jobs", { server: server.url });
    await until(() => server.requests.some(({ method }) => method === "HEAD"));
    watching.close();
    await sooner(watching.finished, 3000);
    assert.equal(watching.getSnapshot().status, "ended");
    server.stop();
  });

  test("a watch that is closed ends at once while the application looks for a token, and sends no request", async () => {
    const server = await answering((_, response) => begin(response));
    const { promise: asked, resolve: ask } = withResolvers();
    const { promise: secret, resolve: answer } = withResolvers();
    const watching = watch("jobs", {
      server: server.url,
      token: () => {
        ask();
        return secret;
      },
    });
    await asked;
    watching.close();
    await sooner(watching.finished, 3000);
    answer("late");
    await secret;
    await new Promise(setImmediate);
    assert.deepEqual(server.requests, []);
    server.stop();
  });

  test("a report whose token does not come asks for another one", async () => {
    let asked = 0;
    const never = new Promise(() => {});
    const job = report("tokenless", { server: real.url, secretMs: 100, token: () => (asked++ === 0 ? never : token("worker")) });
    assert.equal(await sooner(job.complete(), 10_000), true);
    const problems = [];
    const given = report("tokenless", { server: real.url, secretMs: 100, giveUpMs: 0, token: () => never, onError: ({ message }) => problems.push(message) });
    assert.equal(await sooner(given.complete(), 10_000), false);
    assert.deepEqual(problems, Array(2).fill("the application returns no token or ticket"));
  });
});

// By themselves, because a network that returns ends the pauses of all.
for (const kind of ["token", "ticket"]) {
  test(`an application whose ${kind} does not come is asked again, with pauses, and the watch says so meanwhile`, async () => {
    const server = await answering((_, response) => begin(response));
    const asked = [];
    const watching = watch("jobs", {
      server: server.url,
      secretMs: 100,
      [kind]: () => {
        asked.push(performance.now());
        return asked.length < 3 ? new Promise(() => {}) : "at last";
      },
    });
    await until(() => watching.getSnapshot().error);
    assert.equal(watching.getSnapshot().error.message, "the application returns no token or ticket");
    await until(() => watching.getSnapshot().status === "live");
    // The shortest pauses are half as long as the first one, and as the second one.
    assert.ok(asked[1] - asked[0] > 500 && asked[2] - asked[1] > 1000, `${asked}`);
    assert.equal(asked.length, 3);
    assert.equal(server.requests.length, 1, "no request without it, not even for a test of the network");
    watching.close();
    await sooner(watching.finished, 3000);
    server.stop();
  });
}

// By itself, as all tests of this file have one clock.
test("a page whose token does not come at first watches all the same", async (context) => {
  const server = await answering((_, response) => begin(response));
  // A page looks for a token before it connects, to learn whose stored state is its own.
  const stored = Object.getOwnPropertyDescriptor(globalThis, "sessionStorage");
  Object.defineProperty(globalThis, "sessionStorage", { value: { getItem: () => null, setItem() {}, removeItem() {} }, configurable: true });
  context.after(() => (stored ? Object.defineProperty(globalThis, "sessionStorage", stored) : delete globalThis.sessionStorage));
  let asked = 0;
  const never = new Promise(() => {});
  const watching = watch("jobs", { server: server.url, secretMs: 100, token: () => (asked++ === 0 ? never : "at last") });
  await until(() => watching.getSnapshot().status === "live");
  assert.equal(asked, 2);
  watching.close();
  await sooner(watching.finished, 3000);
  const closed = watch("jobs", { server: server.url, token: () => never });
  await new Promise(setImmediate);
  closed.close();
  await sooner(closed.finished, 3000);
  server.stop();
});

test("a clock that is set back does not hold up long polls", async (context) => {
  const poll = (messages) => JSON.stringify({ messages, cursor: READY.cursor });
  const server = await answering((_, response, index) => {
    response.setHeader("Content-Type", "application/json");
    if (index < 5) response.end(poll([CONNECTED, READY]));
  });
  const now = Date.now;
  let back = 0;
  context.mock.method(Date, "now", () => now() - back);
  const watching = watch("jobs", {
    server: server.url,
    transports: ["poll"],
    fetch: async (...request) => {
      const answer = await fetch(...request);
      back += 3_600_000;
      return answer;
    },
  });
  await until(() => server.requests.length > 5);
  watching.close();
  await watching.finished;
  server.stop();
});

// By itself as well.
test("a connection that is dead after the machine was asleep is no reason to change the transport", async (context) => {
  const server = await answering(({ method, headers }, response) => {
    if (method === "HEAD") response.end();
    else if (headers.accept === "text/event-stream") begin(response, { type: "connected", heartbeat_secs: 1 });
  });
  let asleep = 0;
  const now = Date.now;
  context.mock.method(Date, "now", () => now() + asleep);
  const watching = watch("jobs", { server: server.url, transports: ["sse", "poll"] });
  await until(() => watching.getSnapshot().status === "live");
  asleep = 3_600_000;
  await until(() => watching.getSnapshot().status === "offline");
  await until(() => watching.getSnapshot().status === "live");
  assert.equal(watching.getSnapshot().transport, "sse");
  watching.close();
  await watching.finished;
  server.stop();
});

// By itself as well.
test("a clock that is set back does not hold up a report", async (context) => {
  const sent = [];
  let back = 0;
  const now = Date.now;
  context.mock.method(Date, "now", () => now() - back);
  const job = report("import", {
    server: "http://server.example",
    fetch: async (url) => {
      back += 3_600_000;
      sent.push(url.slice(url.lastIndexOf("/") + 1));
      return Response.json({ attempt: 1 });
    },
  });
  await until(() => sent.length === 1);
  for (let index = 0; index < 3; index++) {
    job.progress(index);
    await until(() => sent.length === index + 2);
  }
  assert.deepEqual(sent, ["start", "progress", "progress", "progress"]);
});

// By itself, as the example takes the global `fetch`.
test("the example for pages waits for a second if `Retry-After` is a date", async (context) => {
  const text = readFileSync(new URL("../../../examples/browser/listen.js", import.meta.url));
  const { listen } = await import(`data:text/javascript;base64,${text.toString("base64")}`);
  const asked = [];
  context.mock.method(globalThis, "fetch", async () => {
    asked.push(performance.now());
    return new Response("{}", { status: 503, headers: { "Retry-After": new Date(Date.now() + 5000).toUTCString() } });
  });
  const stop = new AbortController();
  const listening = listen({ server: "http://server.example", channels: ["jobs"], token: () => "any", onMessage() {}, signal: stop.signal });
  await until(() => asked.length === 2);
  stop.abort();
  await listening;
  assert.ok(asked[1] - asked[0] > 950, `${asked[1] - asked[0]} ms`);
});

/** As `Promise.withResolvers`, which Node 20 lacks. */
function withResolvers() {
  const own = {};
  own.promise = new Promise((resolve) => {
    own.resolve = resolve;
  });
  return own;
}
