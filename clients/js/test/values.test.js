// Reports of values that throw when they are read.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { report } from "../dist/index.js";
import { tidings, token } from "./support.js";

describe("values that throw", { concurrency: true }, () => {
  let server;
  before(async () => {
    server = await tidings();
  });
  after(() => server.remove());

  const broken = new Error("cannot be read");
  const getter = (name) =>
    Object.defineProperty({}, name, {
      enumerable: true,
      get() {
        throw broken;
      },
    });
  const begin = (options) => {
    const problems = [];
    const job = report("import", { server: server.url, token: () => token("worker"), onError: (error) => problems.push(error), ...options });
    return { job, problems, stored: () => server.call("GET", `/api/jobs/${job.id}`) };
  };

  test("progress that is no number is left out, and the rest of the report is sent", async () => {
    const { job, problems, stored } = begin();
    job.progress(40);
    await job.flush();
    const throws = {
      valueOf() {
        throw broken;
      },
    };
    job.progress(throws, "by an object");
    job.progress(Symbol("half"), "by a symbol", { row: 1 });
    await job.flush();
    const { progress, message, metadata } = await stored();
    assert.deepEqual([progress, message, metadata], [40, "by a symbol", { row: 1 }]);
    assert.equal(problems[0], broken);
    assert.ok(problems[1] instanceof TypeError);
    assert.equal(problems.length, 2);
    assert.equal(await job.complete(), true);
  });

  test("metadata that cannot be read is left out, and the rest of the report is sent", async () => {
    const { job, problems, stored } = begin({ title: "Import", metadata: getter("rows") });
    job.progress(50, "Half", getter("rows"));
    await job.flush();
    const { progress, message, metadata } = await stored();
    assert.deepEqual([progress, message, metadata], [50, "Half", { title: "Import" }]);
    assert.deepEqual(problems, [broken, broken]);
    assert.equal(await job.complete(getter("result")), true);
    assert.deepEqual(problems, [broken, broken, broken]);
  });

  test("an error that cannot be read fails the job all the same", async () => {
    for (const name of ["message", "name"]) {
      const { job, problems, stored } = begin();
      assert.equal(await job.fail(getter(name)), true);
      const { status, error } = await stored();
      assert.deepEqual([status, error.code, error.message], ["failed", "error", "[object Object]"]);
      assert.deepEqual(problems, [broken]);
    }
  });

  test("without a listener, nothing is thrown either", async () => {
    const { job, stored } = begin({ onError: undefined });
    job.progress(Symbol("half"));
    assert.equal(await job.fail(getter("message")), true);
    assert.equal((await stored()).status, "failed");
  });
});
