// The vectors that all clients must pass, over real connections and in real time. Many cases run at once, because most of the time is waiting.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { WebSocket } from "ws";
import { watch } from "../dist/index.js";
import { SENTINEL, scripted } from "./scripted.js";

const { cases } = JSON.parse(readFileSync(new URL("../../vectors/watch.json", import.meta.url)));
const PATIENCE_MS = 60_000;
// A loaded machine is late.
const LATE_MS = 2_000;

describe("vectors", { concurrency: 24 }, () => {
  for (const script of cases)
    for (const transport of script.transports ?? ["sse", "websocket", "poll"])
      test(`${transport}: ${script.name}`, { timeout: PATIENCE_MS }, () => run(script, transport));
});

async function run({ connections, expect, options = {} }, transport) {
  const server = await scripted(connections);
  const tokens = [...(options.tokens ?? ["any"])];
  const delivered = [];
  const watching = watch("jobs", {
    server: server.url,
    cursor: options.cursor,
    token: () => (tokens.length > 1 ? tokens.shift() : tokens[0]),
    transports: [transport],
    WebSocket,
    onTiding: (tiding) => delivered.push(tiding),
  });
  let before;
  let outcome;
  try {
    if (expect.outcome === "watching") {
      await until(() => server.requests.length >= connections.length && delivered.length >= expect.delivered.length);
      before = watching.getSnapshot();
      await until(() => {
        server.finish();
        return delivered.some(({ type }) => type === SENTINEL.type);
      });
      outcome = { outcome: "watching" };
    } else {
      outcome = await watching.finished.then(
        () => ({ outcome: "ended" }),
        (error) => ({ outcome: "failed", error }),
      );
      before = watching.getSnapshot();
    }
  } finally {
    watching.close();
    await watching.finished.catch(() => {});
    await server.stop();
  }
  const story = delivered.filter(({ type }) => type !== SENTINEL.type);
  assert.deepEqual(
    story.map((tiding, index) => pick(tiding, expect.delivered[index] ?? { type: 0, seq: 0 })),
    expect.delivered,
  );
  if (expect.cursor) assert.equal(watching.getSnapshot().cursor, expect.cursor);
  if (expect.state)
    assert.deepEqual(Object.fromEntries([...before.subjects].map(([key, { seq }]) => [key, seq])), expect.state);
  assert.equal(outcome.outcome, expect.outcome, outcome.error);
  if (expect.error) assert.deepEqual(pick(outcome.error, expect.error), expect.error);
  for (const [index, { expect: request, wait_ms = {}, silence_ms = {} }] of connections.entries()) {
    const made = server.requests[index];
    assert.equal(made.cursor.value, request.cursor, `cursor of request ${index}`);
    if (request.cursor_in) assert.ok(request.cursor_in.includes(made.cursor.place), made.cursor.place);
    if (request.token) assert.equal(made.token, request.token, `token of request ${index}`);
    for (const { min = 0, max = Number.POSITIVE_INFINITY } of [wait_ms, silence_ms]) {
      if (!min && max === Number.POSITIVE_INFINITY) continue;
      assert.ok(made.quiet > min - 20, `request ${index} after ${made.quiet} ms`);
      assert.ok(made.waited < max + LATE_MS, `request ${index} after ${made.waited} ms`);
    }
  }
  const surplus = server.requests.length - connections.length;
  assert.ok(surplus <= (transport === "poll" && expect.outcome === "watching" ? 3 : 0), `${surplus} more requests than scripted`);
}

const pick = (from, fields) => Object.fromEntries(Object.keys(fields).map((name) => [name, from?.[name]]));

async function until(condition) {
  const deadline = performance.now() + PATIENCE_MS;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`in vain: ${condition}`);
    await new Promise((next) => setTimeout(next, 10));
  }
}
