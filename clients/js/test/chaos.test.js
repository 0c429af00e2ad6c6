// Servers that restart and are killed, connections that are cut, networks that change, tokens that expire: the reader ends with
// the whole story, once, in order, as the server's own log has it.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { WebSocket } from "ws";
import { watch } from "../dist/index.js";
import { proxy, tidings, token, until } from "./support.js";

const EVENTS = 240;
const TOKEN_SECS = 5;

/** Reproducible chance. */
function chance(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

describe("chaos", { concurrency: true }, () => {
  const roaming = ["sse", "websocket", "poll"];
  for (const [seed, transports] of [[1, ["sse"]], [2, ["websocket"]], [3, ["poll"]], [4, roaming]])
    test(`${transports.length > 1 ? "roaming" : transports}: the whole story, once, in order`, { timeout: 110_000 }, (context) =>
      chaos(context, seed, transports),
    );
});

async function chaos(context, seed, transports) {
  const pick = chance(seed);
  const server = await tidings({ TIDINGS_HEARTBEAT_SECS: "1", TIDINGS_JWT_LEEWAY_SECS: "0" });
  const between = await proxy(() => server.port);
  const heard = [];
  const used = new Set();
  let tokens = 0;
  const watching = watch("jobs", {
    server: between.url,
    token: () => token("viewer", TOKEN_SECS, { jti: tokens++ }),
    transports,
    WebSocket,
    query: { tick_ms: 0 },
    onTiding: (tiding) => heard.push(tiding),
  });
  watching.subscribe(() => used.add(watching.getSnapshot().transport));
  try {
    await until(() => watching.getSnapshot().ready);
    // The publisher does not go through the proxy, and repeats what the server did not answer.
    const publish = async (number) => {
      const id = `job-${number % 5}`;
      const line = number < 5 ? `jobs/${id}/start` : number >= EVENTS - 5 ? `jobs/${id}/complete` : `jobs/${id}/progress`;
      const body = line.endsWith("complete") ? { message: `end ${number}` } : { job_type: "chaos", message: `report ${number}` };
      await until(() => server.post(line, body).then(() => true, (error) => error.status === 409), `report ${number}`);
    };
    const upsets = [
      () => between.cut(),
      () => between.cut(),
      async () => {
        await server.stop("SIGTERM");
        await server.start();
      },
      async () => {
        await server.stop("SIGKILL");
        await server.start();
      },
      async () => {
        // The network is gone until the client has noticed.
        between.modes.add("refuse");
        between.cut();
        await until(() => watching.getSnapshot().status !== "live" || transports.includes("poll"));
        between.modes.delete("refuse");
      },
      () => {
        // Another network.
        between.modes.delete("no-sse");
        between.modes.delete("no-upgrade");
        if (transports.length > 1) for (const mode of ["no-sse", "no-upgrade"]) if (pick(2)) between.modes.add(mode);
        between.cut();
      },
    ];
    for (let number = 0; number < EVENTS; number++) {
      await publish(number);
      if (number % 30 === 29) {
        // Each once, and then by chance.
        await upsets[number < 180 ? Math.floor(number / 30) : pick(upsets.length)]();
        // Now and then, the client is back before the next upset.
        if (pick(2)) {
          await until(() => {
            const { status, error } = watching.getSnapshot();
            if (status === "failed") throw error;
            return status === "live";
          }, "live again");
        }
      }
    }
    const log = await server.log("jobs");
    const last = log.at(-1);
    await until(() => heard.some(({ seq }) => seq === last.seq), "the last event");
    // Outlive a token.
    await until(() => tokens > 3, "tokens expire");
    await server.post("jobs", { job_id: "after", job_type: "chaos" });
    await until(() => heard.some(({ job_id }) => job_id === "after"), "an event after all");
    const story = heard.filter(({ seq }) => seq);
    const told = (events) => events.map(({ seq, job_id, status, message }) => [seq, job_id, status, message].join(" "));
    assert.deepEqual(told(story), told(await server.log("jobs")));
    assert.deepEqual(
      heard.filter(({ seq }) => !seq).map(({ type }) => type),
      ["ready"],
      "no reset, and one ready",
    );
    for (const [key, { seq }] of watching.getSnapshot().subjects)
      assert.equal(seq, story.findLast((event) => `jobs/${event.job_id}` === key).seq);
    context.diagnostic(`${story.length} events, ${tokens} tokens, ${[...used].filter(Boolean)}`);
    if (transports.length > 1) assert.ok([...used].filter(Boolean).length > 1, `roamed over ${[...used]}`);
  } finally {
    watching.close();
    await watching.finished.catch(() => {});
    await between.stop();
    await server.remove();
  }
}
