// What a watch asks for.
import assert from "node:assert/strict";
import { test } from "node:test";
import { watch } from "../dist/index.js";

/** Returns the path and the parameters of the first request. */
async function asked(scope, query) {
  let found;
  const fetch = async (url) => {
    const { pathname, searchParams } = new URL(url);
    found ??= [pathname, ...[...searchParams].map(([name, value]) => `${name}=${value}`)];
    watching.close();
    throw new TypeError("fetch failed");
  };
  const watching = watch(scope, { server: "http://tidings.example", transports: ["sse"], query, fetch });
  await watching.finished;
  return found;
}

test("parameters are asked for in addition to the channels of the scope", async () => {
  const several = ["/events", "channel=jobs", "channel=devices"];
  assert.deepEqual(await asked(["jobs"], { channel: "devices" }), [...several, "status_case=lower"]);
  assert.deepEqual(await asked(["jobs", "devices"], { channel: undefined, tick_ms: 0 }), [...several, "tick_ms=0", "status_case=lower"]);
  assert.deepEqual(await asked("jobs?status=failed", { job_type: ["import", "export"] }), [
    "/events/jobs",
    "status=failed",
    "job_type=import",
    "job_type=export",
    "status_case=lower",
  ]);
});

test("statuses come in lower case unless the scope or a parameter says otherwise, once", async () => {
  assert.deepEqual(await asked("jobs"), ["/events/jobs", "status_case=lower"]);
  assert.deepEqual(await asked("jobs", { status_case: undefined }), ["/events/jobs", "status_case=lower"]);
  assert.deepEqual(await asked("jobs", { status_case: "upper" }), ["/events/jobs", "status_case=upper"]);
  assert.deepEqual(await asked("jobs?status_case=upper"), ["/events/jobs", "status_case=upper"]);
});
