// Reports never block or break the work, and arrive once.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { after, before, describe, test } from "node:test";
import { report, watch } from "../dist/index.js";
import { proxy, tidings, token, until } from "./support.js";

describe("report", { concurrency: true }, () => {
  let server;
  before(async () => {
    server = await tidings();
  });
  after(() => server.remove());

  const begin = (type, options = {}) => report(type, { server: server.url, token: () => token("worker"), ...options });
  const get = (id) => server.call("GET", `/api/jobs/${id}`);

  test("a job is reported from its start to its end, with its attempt", async () => {
    const job = begin("import", { title: "Import", metadata: { rows: 2 }, worker: "w1" });
    job.progress(50, "Half", { file: "a.csv" });
    assert.equal(await job.complete({ rows: 2 }), true);
    const stored = await get(job.id);
    assert.deepEqual(
      [stored.status, stored.attempt, stored.result, stored.metadata, stored.worker],
      ["completed", 1, { rows: 2 }, { rows: 2, title: "Import", file: "a.csv" }, "w1"],
    );
    job.progress(60);
    assert.equal(await job.complete(), false, "a job ends once");
  });

  test("a burst of progress is folded, and its metadata is kept", async () => {
    const job = begin("burst");
    for (let index = 0; index <= 1000; index++) job.progress(index / 10, `Row ${index}`, { [`k${index % 3}`]: index });
    await job.complete();
    const events = await server.log(`jobs/${job.id}`);
    assert.ok(events.length < 10, `${events.length} events`);
    assert.deepEqual((await get(job.id)).metadata, { k0: 999, k1: 1000, k2: 998 });
  });

  test("a tracked iteration reports how far it is", async () => {
    const job = begin("track");
    const seen = [];
    for await (const row of job.track(["a", "b", "c", "d"])) seen.push(row);
    await job.flush();
    assert.deepEqual(seen, ["a", "b", "c", "d"]);
    const { progress, message } = await get(job.id);
    assert.deepEqual([progress, message], [100, "4 of 4"]);
    await job.complete();
  });

  test("a report whose answer is lost is repeated and counts once", async () => {
    const between = await proxy(() => server.port);
    let lost = 0;
    // The request arrives; its answer does not.
    const lossy = async (address, init) => {
      const answer = await fetch(address, init);
      if (lost++ % 2 === 0) throw new TypeError("fetch failed");
      return answer;
    };
    const job = begin("lossy", { server: between.url, fetch: lossy });
    job.progress(10);
    await job.flush();
    job.progress(20);
    assert.equal(await job.complete("done"), true);
    const events = await server.log(`jobs/${job.id}`);
    assert.deepEqual(
      events.map(({ status, progress }) => [status, progress]),
      [["in_progress", 0], ["in_progress", 10], ["in_progress", 20], ["completed", 100]],
    );
    assert.ok(lost >= 8);
    await between.stop();
  });

  test("whatever a report contains, the end of the job arrives", async () => {
    const problems = [];
    const onError = (error) => problems.push(error);
    const circular = { own: 1 };
    circular.self = circular;
    const odd = begin("odd", { title: "x".repeat(100_000), onError });
    odd.progress(1n, "m".repeat(10_000), { big: 10n ** 20n });
    assert.equal(await odd.complete(circular), true);
    const stored = await get(odd.id);
    assert.deepEqual([stored.status, stored.result, stored.metadata.big], ["completed", null, String(10n ** 20n)]);
    const large = begin("large", { onError });
    large.progress(50, "Half", { much: "x".repeat(100_000) });
    await large.flush();
    assert.equal((await get(large.id)).progress, 50);
    assert.equal(await large.complete("x".repeat(1_000_000)), true);
    assert.equal(problems.length, 4, problems.join("\n"));
    for (const [error, code, message] of [
      [new Error("ü".repeat(10_000)), "c".repeat(1_000), /^ü{1998}…$/],
      [new RangeError(""), undefined, /^RangeError$/],
      [Object.create(null), undefined, /^object$/],
      [undefined, undefined, /^undefined$/],
    ]) {
      const failed = begin("failed", { onError });
      assert.equal(await failed.fail(error, code), true);
      assert.match((await get(failed.id)).error.message, message);
    }
    assert.equal(problems.length, 4, "no text is too long");
  });

  test("a report stays the same at each try, whatever the application does with its objects meanwhile", async () => {
    const bodies = [];
    const metadata = { list: [1] };
    const job = begin("same", {
      metadata,
      fetch: async (url, init) => {
        bodies.push([init.headers["Idempotency-Key"], init.body]);
        metadata.list.push(2);
        if (bodies.length === 1) throw new TypeError("fetch failed");
        return fetch(url, init);
      },
    });
    await job.flush();
    assert.equal(bodies.length, 2);
    assert.deepEqual(bodies[0], bodies[1]);
    assert.deepEqual((await get(job.id)).metadata, { list: [1] });
    await job.complete();
  });

  test("of metadata that grows while a report waits, the newest is kept", async () => {
    const job = begin("growing");
    for (let index = 0; index < 5000; index++) job.progress(0, undefined, { [`k${index}`]: index, first: index });
    await job.complete();
    const { metadata } = await get(job.id);
    assert.deepEqual([Object.keys(metadata).length, metadata.first, metadata.k4001, metadata.k4000], [1000, 4999, 4001, undefined]);
  });

  test("a server that is away delays reports, and loses none", async () => {
    const own = await tidings();
    const job = report("away", { server: own.url, token: () => token("worker") });
    await job.flush();
    await own.stop("SIGKILL");
    for (let index = 1; index <= 50; index++) job.progress(index);
    const ended = job.complete("at last");
    await own.start();
    assert.equal(await ended, true);
    const stored = await own.call("GET", `/api/jobs/${job.id}`);
    assert.deepEqual([stored.status, stored.result], ["completed", "at last"]);
    await own.remove();
  });

  // The `fetch` of Node 20 neither settles then, nor keeps the process running.
  test("a process whose first connection is closed at once still sends its reports before it ends", async () => {
    let refused = false;
    const between = createServer((client) => {
      if (!refused) {
        refused = true;
        return client.destroy();
      }
      const upstream = connect(server.port, "127.0.0.1");
      for (const [one, other] of [[client, upstream], [upstream, client]]) {
        one.on("error", () => other.destroy());
        one.pipe(other);
      }
    });
    between.listen(0, "127.0.0.1");
    await once(between, "listening");
    const program = `
      import { report } from ${JSON.stringify(new URL("../dist/index.js", import.meta.url).href)};
      const job = report("import", { id: "closed-at-once", server: "http://127.0.0.1:${between.address().port}", token: () => ${JSON.stringify(token("worker"))} });
      console.log(await job.complete());`;
    const child = spawn(process.execPath, ["--input-type=module", "--eval", program], { stdio: ["ignore", "pipe", "inherit"] });
    let output = "";
    child.stdout.on("data", (piece) => {
      output += piece;
    });
    const [code] = await once(child, "close");
    between.close();
    assert.deepEqual([code, output.trim(), refused], [0, "true", true]);
    assert.equal((await get("closed-at-once")).status, "completed");
  });

  test("a job that the server has lost is reported anew", async () => {
    const own = await tidings();
    const options = { server: own.url, token: () => token("worker"), id: "lost", title: "Import" };
    await report("import", options).fail("first try");
    await own.post("jobs/lost/retry");
    const job = report("import", options);
    await job.flush();
    assert.equal((await own.call("GET", "/api/jobs/lost")).attempt, 2);
    for (const last of [() => job.progress(50), () => job.complete("done")]) {
      await own.stop();
      own.forget();
      await own.start();
      last();
      await job.flush();
      assert.equal(job.signal.aborted, false);
    }
    const { attempt, status, result, metadata } = await own.call("GET", "/api/jobs/lost");
    assert.deepEqual([attempt, status, result, metadata], [1, "completed", "done", { title: "Import" }]);
    await own.remove();
  });

  test("a job that the server has lost, and that another worker has started since, is left to it", async () => {
    const own = await tidings();
    try {
      for (const last of [(job) => job.progress(50), (job) => job.complete("done")]) {
        const problems = [];
        const options = {
          server: own.url,
          token: () => token("worker"),
          id: "lost",
          onError: (error) => problems.push(error),
          fetch: async (url, init) => {
            const answer = await fetch(url, init);
            // The other worker is quicker than this one.
            if (answer.status === 404) await own.post("jobs/lost/start", { job_type: "import", worker: "other" });
            return answer;
          },
        };
        await report("import", options).fail("first try");
        await own.post("jobs/lost/retry");
        const job = report("import", options);
        await job.flush();
        const forget = async () => {
          await own.stop();
          own.forget();
          await own.start();
        };
        await forget();
        last(job);
        await job.flush();
        assert.equal(job.signal.aborted, true);
        assert.equal(await job.complete("too late"), false);
        const { attempt, status, progress, worker } = await own.call("GET", "/api/jobs/lost");
        assert.deepEqual([attempt, status, progress, worker], [1, "in_progress", 0, "other"]);
        assert.ok(problems.length > 0);
        await forget();
      }
    } finally {
      await own.remove();
    }
  });

  test("a server that does not come back breaks nothing", async () => {
    const problems = [];
    const job = report("nowhere", {
      server: "http://127.0.0.1:9",
      giveUpMs: 300,
      onError: (error) => {
        problems.push(error);
        throw new Error("not even this");
      },
    });
    job.progress(1);
    assert.equal(await job.fail(new Error("x")), false);
    await job.flush();
    assert.equal(problems.length, 3);
  });

  test("a server that is no URL, and a token that is rejected, break nothing, and the console says so", async () => {
    const all = [];
    const told = (id) => all.filter((text) => text.includes(id)); // tests run at the same time
    const { warn } = console;
    console.warn = (text) => all.push(text);
    try {
      for (const address of [undefined, "", "127.0.0.1:8000", "localhost:8000"]) {
        const job = report("misled", { id: "misled", server: address });
        job.progress(1);
        assert.equal(await job.complete(), false);
      }
      assert.deepEqual(told("misled").map((text) => text.split(": ")[1]), Array(4).fill("a report of misled misled could not be sent as it is"));
      assert.match(told("misled")[3], /not a server: localhost:8000/);
      const job = begin("secret", { token: () => "wrong" });
      await job.flush();
      assert.equal(told(job.id).length, 1);
      assert.match(told(job.id)[0], /the token is not valid/);
    } finally {
      console.warn = warn;
    }
  });

  test("a request to cancel aborts the signal, and the worker confirms", async () => {
    const job = begin("cancel");
    await job.flush();
    await server.post(`jobs/${job.id}/cancel`);
    job.progress(5);
    await until(() => job.signal.aborted);
    assert.equal(job.signal.reason.code, "cancel_requested");
    assert.equal(await job.cancel("Stopped"), true);
    assert.equal((await get(job.id)).status, "cancelled");
  });

  test("a worker that was given up changes nothing, and learns of it", async () => {
    const job = begin("fenced");
    await job.flush();
    await server.post(`jobs/${job.id}/fail`, { error: "given up" });
    await server.post(`jobs/${job.id}/retry`);
    await server.post(`jobs/${job.id}/start`, { worker: "another" });
    const problems = [];
    job.progress(99);
    await until(() => job.signal.aborted);
    assert.equal(job.signal.reason.code, "stale-attempt");
    assert.equal(await job.complete(), false);
    const { status, attempt, progress } = await get(job.id);
    assert.deepEqual([status, attempt, progress], ["in_progress", 2, 0], problems);
  });

  test("a job that runs already is joined under its attempt, and one that has ended is left alone", async () => {
    for (const id of ["joined", "over"]) {
      await server.post("jobs", { job_id: id, job_type: "import", status: "in_progress" });
    }
    await server.post("jobs/over/complete");
    const bodies = [];
    const recorded = (url, init) => {
      if (init.body) bodies.push(JSON.parse(init.body));
      return fetch(url, init);
    };
    const joined = begin("import", { id: "joined", fetch: recorded });
    joined.progress(5);
    assert.equal(await joined.complete(), true);
    assert.deepEqual(bodies.slice(1).map((body) => body.attempt), bodies.slice(1).map(() => 1));
    const over = begin("import", { id: "over", fetch: recorded });
    await until(() => over.signal.aborted);
    assert.equal(await over.fail("late"), false);
    assert.equal((await get("over")).status, "completed");
  });

  test("a token that has expired is replaced", async () => {
    const tokens = [token("worker", -3600), token("worker")];
    const job = begin("token", { token: () => (tokens.length > 1 ? tokens.shift() : tokens[0]) });
    assert.equal(await job.complete(), true);
    assert.equal((await get(job.id)).status, "completed");
  });

  test("a server that writes statuses in upper case changes nothing", async () => {
    const upper = await tidings({ TIDINGS_STATUS_CASE: "upper" });
    try {
      await upper.post("jobs", { job_id: "joined", job_type: "import" });
      assert.equal((await upper.post("jobs/joined/start")).status, "IN_PROGRESS");
      const job = begin("import", { server: upper.url, id: "joined" });
      assert.equal(await job.complete(), true, "it joins the attempt that is running");
      assert.equal(job.signal.aborted, false);
      const first = async (query) => {
        const watching = watch("jobs/joined", { server: upper.url, token: () => token(), query });
        try {
          for await (const { status } of watching) return status;
        } finally {
          watching.close();
        }
      };
      assert.equal(await first(), "completed");
      assert.equal(await first({ status_case: "upper" }), "COMPLETED");
    } finally {
      await upper.remove();
    }
  });
});
