// The JavaScript client as a process of `clients_run.py`, which describes the arguments and the output.
import { existsSync, readFileSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { report, watch } from "../../../clients/js/dist/index.js";

// Node 20 has no WebSocket. The development dependencies of the client have one.
const { WebSocket } = createRequire(new URL("../../../clients/js/package.json", import.meta.url))("ws");

/** The pause between two reports. */
const PAUSE_MS = 50;
/** How long a request for a ticket may take. */
const TICKET_MS = 3000;
/** How many jobs end before a publisher waits for the answers. */
const JOBS_WAITING = 3;

const [mode, server, folder, ...rest] = process.argv.slice(2);
// The pipe may be full, while this process is ahead of its reader.
const print = (line) => {
  let bytes = Buffer.from(`${JSON.stringify(line)}\n`);
  while (bytes.length) {
    try {
      bytes = bytes.subarray(writeSync(1, bytes));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
};
const token = (role) => () => readFileSync(join(folder, role), "utf8");
const pause = () => new Promise((next) => setTimeout(next, PAUSE_MS));

/** Returns a fresh ticket for the scope, which the server itself issues, not through the proxy. */
const ticketFor = (scope) => async () => {
  const direct = readFileSync(join(folder, "server"), "utf8");
  // A timer of its own keeps the process running, even if `fetch` of Node 20 does not settle because the server has just been killed.
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(new Error("the server does not answer")), TICKET_MS);
  try {
    const answer = await fetch(`${direct}/api/tickets`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token("viewer")()}`, "Content-Type": "application/json" },
      body: JSON.stringify({ channels: [scope] }),
      signal: late.signal,
    });
    if (!answer.ok) throw new Error(`no ticket: ${answer.status}`);
    const { ticket } = await answer.json();
    print({ type: "ticket" });
    return ticket;
  } finally {
    clearTimeout(timer);
  }
};

async function read(transport, scope, tickMs, secret) {
  const credential = secret === "ticket" ? { ticket: ticketFor(scope) } : { token: token("viewer") };
  const watching = watch(scope, { server, ...credential, transports: [transport], WebSocket, query: { tick_ms: tickMs } });
  for await (const tiding of watching) {
    print(tiding);
    if (tiding.job_id === "the-end" && tiding.status === "completed") break;
  }
  print({ type: "subjects", subjects: Object.fromEntries(watching.getSnapshot().subjects) });
  watching.close();
  await watching.finished;
}

/** Reports jobs; each is an outbox of its own. */
async function publish(name) {
  const failures = [];
  const answering = async (...request) => {
    const answer = await fetch(...request);
    if (!answer.ok) return answer;
    const text = await answer.text();
    print({ type: "answered", event: JSON.parse(text) });
    return new Response(text, answer);
  };
  let waiting = [];
  const answered = async () => {
    for (const { job, status, sent } of waiting) {
      if (!(await sent)) throw new Error(`${job.id} could not be reported`);
      print({ type: "ended", job_id: job.id, status });
    }
    waiting = [];
  };
  for (let number = 1; !existsSync(join(folder, "stop")); number++) {
    const job = report("chaos", { server, token: token("worker"), id: `${name}-${number}`, fetch: answering, onError: (error) => failures.push(String(error)) });
    for (let step = 1; step <= 3 + (number % 7); step++) {
      job.progress(step * 10, `step ${step}`);
      await pause();
    }
    const fails = number % 4 === 0;
    waiting.push({ job, status: fails ? "failed" : "completed", sent: fails ? job.fail("paper", "jam") : job.complete({ number }) });
    if (waiting.length === JOBS_WAITING) await answered();
  }
  await answered();
  print({ type: "outbox", waiting: failures.length, failures });
}

await (mode === "watch" ? read(...rest) : publish(...rest));
