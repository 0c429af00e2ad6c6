// Against a real server.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { WebSocket } from "ws";
import { TidingsError, watch } from "../dist/index.js";
import { proxy, tidings, token, until } from "./support.js";

describe("watch", { concurrency: true }, () => {
  let server;
  before(async () => {
    server = await tidings();
  });
  after(() => server.remove());

  const open = (scope, options = {}) => watch(scope, { server: server.url, token: () => token(), WebSocket, ...options });

  test("an iterator gets the snapshot, ready and live events, and ends with the watch", async () => {
    await server.post("jobs", { job_id: "i", job_type: "iterated" });
    const watching = open("jobs", { query: { job_type: "iterated" } });
    const types = [];
    for await (const tiding of watching) {
      types.push(tiding.type === "job_progress" ? tiding.status : tiding.type);
      if (tiding.type === "ready") await server.post("jobs/i/start");
      if (tiding.status === "in_progress") await server.post("jobs/i/complete", { result: 7 });
      if (tiding.status === "completed") watching.close();
    }
    assert.deepEqual(types, ["pending", "ready", "in_progress", "completed"]);
    assert.equal(watching.getSnapshot().status, "ended");
    await watching.finished;
  });

  test("an iterator that begins late begins with the present state", async () => {
    await server.post("jobs", { job_id: "late", job_type: "late" });
    const watching = open("jobs/late");
    await until(() => watching.getSnapshot().ready);
    const seen = [];
    for await (const tiding of watching) {
      seen.push([tiding.type, tiding.snapshot]);
      if (tiding.type === "ready") break;
    }
    watching.close();
    assert.deepEqual(seen, [["job_progress", true], ["ready", undefined]]);
  });

  test("a snapshot is the same object until something changes, and its listeners are told", async () => {
    await server.post("jobs", { job_id: "s", job_type: "store" });
    const watching = open("jobs/s");
    const states = [];
    watching.subscribe(() => states.push(watching.getSnapshot()));
    await until(() => watching.getSnapshot().status === "live");
    const first = watching.getSnapshot();
    assert.equal(watching.getSnapshot(), first);
    await server.post("jobs/s/start");
    await until(() => watching.getSnapshot() !== first);
    assert.equal(first.subjects.get("jobs/s").status, "pending", "an old snapshot does not change");
    assert.equal(watching.getSnapshot().subjects.get("jobs/s").status, "in_progress");
    assert.equal(watching.getSnapshot(), states.at(-1));
    watching.close();
  });

  test("a watch that keeps no state delivers everything, and its subjects are empty", async () => {
    await server.post("jobs", { job_id: "stateless", job_type: "stateless" });
    const seen = [];
    const watching = open("jobs/stateless", { subjects: false, onTiding: ({ type, status }) => seen.push(status ?? type) });
    await until(() => watching.getSnapshot().ready);
    await server.post("jobs/stateless/start");
    await until(() => seen.length === 3);
    assert.deepEqual(seen, ["pending", "ready", "in_progress"]);
    assert.equal(watching.getSnapshot().subjects.size, 0);
    watching.close();
  });

  test("a server that closes a stream and asks to reconnect tells so by a code", async () => {
    const own = await tidings();
    try {
      const watching = open("jobs", { server: own.url });
      const errors = [];
      watching.subscribe(() => errors.push(watching.getSnapshot().error));
      await until(() => watching.getSnapshot().status === "live");
      await own.stop();
      await until(() => errors.some((error) => error));
      assert.equal(errors.find((error) => error).code, 1001);
      watching.close();
    } finally {
      await own.remove();
    }
  });

  test("several channels are one scope", async () => {
    for (const id of ["a b", "ü/%"]) await server.post("jobs", { job_id: id, job_type: "several" });
    const scope = ["a b", "ü/%"].map((id) => `jobs/${encodeURIComponent(id)}`);
    const watching = open(scope);
    await until(() => watching.getSnapshot().ready);
    assert.deepEqual([...watching.getSnapshot().subjects.keys()], scope);
    watching.close();
  });

  for (const transport of ["sse", "websocket", "poll"])
    test(`${transport}: what does not exist or is not allowed fails at once, with the server's reason`, async () => {
      const missing = open("jobs/nothing", { transports: [transport] });
      await assert.rejects(missing.finished, (error) => {
        assert.ok(error instanceof TidingsError);
        assert.deepEqual([error.status, error.code, error.message], [404, "not-found", "jobs/nothing not found"]);
        return true;
      });
      await assert.rejects(async () => {
        for await (const _ of missing);
      }, TidingsError);
      const refused = open("jobs", { transports: [transport], token: () => "nonsense" });
      await assert.rejects(refused.finished, { status: 401 });
    });

  test("a ticket opens its channels", async () => {
    await server.post("jobs", { job_id: "t", job_type: "ticket" });
    for (const transport of ["sse", "websocket", "poll"]) {
      const ticket = async () => (await server.post("tickets", { channels: ["jobs/t"] })).ticket;
      const watching = open("jobs/t", { token: undefined, ticket, transports: [transport] });
      await until(() => watching.getSnapshot().ready);
      watching.close();
    }
  });

  test("an iterator that falls too far behind gets a reset and the present state, not a gap", async () => {
    await server.post("jobs", { job_id: "slow", job_type: "slow" });
    await server.post("jobs/slow/start");
    const watching = open("jobs/slow", { query: { tick_ms: 0 } });
    const iterator = watching[Symbol.asyncIterator]();
    assert.equal((await iterator.next()).value.job_id, "slow");
    assert.equal((await iterator.next()).value.type, "ready");
    const lines = Array.from({ length: 11_000 }, (_, index) =>
      JSON.stringify({ op: "jobs.progress", job_id: "slow", message: String(index) }),
    );
    for (let from = 0; from < lines.length; from += 5_500)
      await fetch(`${server.url}/api/batch`, {
        method: "POST",
        headers: { Authorization: `Bearer ${token("worker")}` },
        body: lines.slice(from, from + 5_500).join("\n"),
      }).then((answer) => answer.text());
    await until(() => watching.getSnapshot().subjects.get("jobs/slow").message === "10999");
    const rest = [];
    for (;;) {
      const { value } = await iterator.next();
      rest.push(value);
      if (value.message === "10999") break;
    }
    assert.equal(rest[0].type, "reset");
    assert.equal(rest[1].snapshot, true);
    assert.ok(rest.length < 11_000);
    watching.close();
  });

  test("what a callback throws is reported as uncaught and does not end the watch", async () => {
    await server.post("jobs", { job_id: "throws", job_type: "x" });
    // In a process of its own, because the test runner catches what is uncaught.
    const script = `
      import { watch } from ${JSON.stringify(new URL("../dist/index.js", import.meta.url).href)};
      const thrown = [];
      const watching = watch("jobs/throws", {
        server: ${JSON.stringify(server.url)},
        token: () => ${JSON.stringify(token())},
        onTiding: ({ type }) => { throw new Error(type); },
      });
      process.on("uncaughtException", ({ message }) => {
        if (thrown.push(message) < 2) return;
        console.log(thrown.join(), watching.getSnapshot().status);
        watching.close();
      });`;
    const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script]);
    assert.equal(stdout.trim(), "job_progress,ready live");
  });

  describe("by what the network permits", () => {
    const reach = async (modes, expected, boundMs) => {
      const between = await proxy(() => server.port);
      between.modes = new Set(modes);
      const began = performance.now();
      const watching = open("jobs", { server: between.url });
      await until(() => watching.getSnapshot().status === "live");
      assert.equal(watching.getSnapshot().transport, expected);
      assert.ok(performance.now() - began < boundMs, `took ${performance.now() - began} ms`);
      // It keeps to its choice.
      between.seen.length = 0;
      between.cut();
      await server.post("jobs", { job_id: `by ${expected}`, job_type: "network" });
      await until(() => watching.getSnapshot().subjects.has(`jobs/by%20${expected}`));
      await until(() => watching.getSnapshot().transport === expected);
      assert.ok(!between.seen.includes("GET text/event-stream") || expected === "sse", between.seen);
      watching.close();
      await watching.finished;
      await between.stop();
    };

    test("SSE where nothing is in the way", () => reach([], "sse", 3_000));
    test("WebSocket where a proxy holds back SSE", () => reach(["no-sse"], "websocket", 8_000));
    test("long poll where a proxy holds back SSE and blocks Upgrade", () => reach(["no-sse", "no-upgrade"], "poll", 9_000));
  });

  test("a server that is away is no reason to change the transport", async () => {
    const own = await tidings();
    try {
      const watching = open("jobs", { server: own.url });
      await until(() => watching.getSnapshot().status === "live");
      await own.stop("SIGKILL");
      await until(() => watching.getSnapshot().status === "offline");
      await until(() => /fetch failed/.test(watching.getSnapshot().error?.message));
      await own.start();
      await until(() => watching.getSnapshot().status === "live");
      assert.equal(watching.getSnapshot().transport, "sse");
      watching.close();
    } finally {
      await own.remove();
    }
  });

  test("a link that is dead without a word is noticed after two heartbeats", async () => {
    const own = await tidings({ TIDINGS_HEARTBEAT_SECS: "1" });
    try {
      for (const transport of ["sse", "websocket"]) {
        const between = await proxy(() => own.port);
        const watching = open("jobs", { server: between.url, transports: [transport] });
        await until(() => watching.getSnapshot().status === "live");
        between.modes.add("freeze");
        const began = performance.now();
        await until(() => watching.getSnapshot().status === "offline");
        assert.ok(performance.now() - began < 5_000);
        between.modes.clear();
        await until(() => watching.getSnapshot().status === "live");
        watching.close();
        await between.stop();
      }
    } finally {
      await own.remove();
    }
  });
});
