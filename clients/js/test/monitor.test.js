// The monitor's pages in Chromium, of a real server behind a network that holds back, refuses or closes their streams.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, request as ask } from "node:http";
import { after, before, describe, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { chromium, tidings, token, until } from "./support.js";

const SCRIPT = readFileSync(new URL("../../../templates/monitor.bundle.js", import.meta.url));
/** A request arrives a little later than the browser has sent it, and not always by the same time. */
const JITTER_MS = 150;

/**
 * A network between the browser and the server. It signs the visitor in, and serves the script of this folder, whichever one the binary has.
 * `seen` are the requests for events. `stream(request, response)` answers one in place of the server, if it returns true.
 */
async function network(server) {
  const own = { seen: [], stream: undefined };
  const front = createServer((request, response) => {
    const { url, method } = request;
    if (/\/assets\/monitor[^/]*\.js$/.test(url)) return response.writeHead(200, { "Content-Type": "text/javascript" }).end(SCRIPT);
    if (url.startsWith("/events")) {
      const { searchParams } = new URL(url, "http://x");
      own.seen.push({ at: performance.now(), method, accept: request.headers.accept, wait: searchParams.get("wait") });
      if (own.stream?.(request, response)) return;
    }
    own.forward(request, response, (answer) => answer.pipe(response));
  });
  own.forward = (request, response, take) => {
    const { url, method, headers } = request;
    const options = { port: server.port, path: url, method, headers: { ...headers, authorization: `Bearer ${token()}` } };
    const upstream = ask(options, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      response.flushHeaders();
      take(answer);
    });
    upstream.on("error", () => response.destroy());
    response.on("close", () => upstream.destroy());
    upstream.end();
  };
  /** Forwards a stream up to `ready`, and holds the rest back. */
  own.holdBack = (request, response) => {
    if (!isStream(request.headers)) return false;
    let begun = "";
    own.forward(request, response, (answer) =>
      answer.on("data", (piece) => {
        if (begun.includes('"ready"')) return;
        begun += piece;
        response.write(piece);
      }),
    );
    return true;
  };
  front.listen(0, "127.0.0.1");
  await once(front, "listening");
  own.url = `http://127.0.0.1:${front.address().port}`;
  own.stop = () => {
    front.closeAllConnections();
    front.close();
  };
  return own;
}

/** Runs in a page: hides or shows it. */
function setHidden(hidden) {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}

/** Runs in a page: calls `act` when the page's stream is closed, and keeps the states of the page from now on in `states`. */
function actOnceClosed(act) {
  const { dataset } = document.getElementById("freshness");
  const states = [dataset.state];
  globalThis.states = states;
  new MutationObserver((_, observer) => {
    if (states !== globalThis.states) return observer.disconnect();
    if (dataset.state === states.at(-1)) return;
    states.push(dataset.state);
    if (states.length === 2) act();
  }).observe(document.getElementById("freshness"), { attributes: true });
}

const isStream = ({ accept }) => accept === "text/event-stream";
const isPoll = ({ accept, method }) => accept === "application/json" && method === "GET";

describe("monitor", { concurrency: true }, () => {
  let server;
  let browser;
  const networks = [];

  before(async () => {
    // Pages of all tests are open at once: none counts as hidden.
    browser = await chromium("--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding", "--disable-background-timer-throttling");
    server = await tidings();
  });
  after(async () => {
    await browser?.close();
    for (const between of networks) between.stop();
    await server?.remove();
  });

  const connect = async () => {
    const between = await network(server);
    networks.push(between);
    return between;
  };
  /** A page of its own visitor: it shares nothing with the pages of the other tests. */
  const visit = async (between, prepare) => {
    const context = await browser.createBrowserContext();
    const page = await context.newPage();
    await prepare?.(page);
    page.problems = [];
    page.on("pageerror", (error) => page.problems.push(error.message));
    await page.goto(`${between.url}/monitor/schools/1`);
    return page;
  };
  const state = (page) => page.$eval("#freshness", ({ dataset }) => dataset.state).catch(() => undefined);
  const is = (page, expected) => until(async () => (await state(page)) === expected, expected);
  const job = async (id) => {
    await server.post("jobs", { job_id: id, job_type: "monitored" });
    await server.post(`jobs/${id}/start`);
  };
  /** Makes the page fetch its content now. */
  const refresh = async (page) => {
    for (let press = 0; press < 2; press++) await page.$eval("#pause", (button) => button.click());
  };
  const hide = (page, hidden) => page.evaluate(setHidden, hidden);

  test("where a proxy holds streams back, a page of a busy school sends one long poll a second, and shows what comes last", async () => {
    const between = await connect();
    between.stream = ({ headers }) => headers.accept === "text/event-stream"; // and no answer follows
    await job("busy");
    const page = await visit(between);
    await is(page, "live");
    assert.ok(between.seen.some(isStream), "it has tried a stream");
    const polls = () => between.seen.filter(({ wait }) => wait === "20");
    const first = polls().length;
    let count = 0;
    // Until the school was busy, however slow the machine is.
    while (polls().length < first + 4 || count < 20) await server.post("jobs/busy/progress", { message: `Row ${++count}.` });
    await until(() => page.$eval("#main", ({ textContent }, text) => textContent.includes(text), `Row ${count}.`));
    const starts = polls().map(({ at }) => at);
    // Of all together, because a busy machine delays single ones. Without the gap, they would follow one another at once.
    const took = starts.at(-1) - starts[0];
    assert.ok(took > 500 * (starts.length - 1), `${starts.length} polls in ${took} ms`);
    assert.deepEqual(page.problems, []);
    await page.browserContext().close();
  });

  test("a page that is opened after the proxy was found to hold streams back polls at once, and one without storage is live as well", async () => {
    const between = await connect();
    // As through a proxy with a buffer that the beginning filled.
    between.stream = between.holdBack;
    const page = await visit(between);
    await is(page, "live");
    assert.ok(!between.seen.some(isPoll), "the stream has begun");
    await job("buffered");
    await refresh(page);
    await until(() => between.seen.some(isPoll), "it polls");
    between.seen.length = 0;
    await page.goto(`${between.url}/monitor/schools/1/jobs`);
    await is(page, "live");
    assert.ok(between.seen.some(isPoll));
    assert.deepEqual(between.seen.filter(isStream), [], "it does not begin with a stream");
    assert.deepEqual(page.problems, []);
    await page.browserContext().close();

    const without = await visit(between, (page) =>
      page.evaluateOnNewDocument(() => {
        const forbidden = () => {
          throw new DOMException("forbidden", "SecurityError");
        };
        Object.defineProperty(globalThis, "sessionStorage", { get: forbidden });
        Object.defineProperty(globalThis, "localStorage", { get: forbidden });
      }),
    );
    await is(without, "live");
    await job("unstored");
    await refresh(without);
    between.seen.length = 0;
    await until(() => between.seen.some(isPoll), "it polls");
    await is(without, "live");
    assert.deepEqual(without.problems, []);
    await without.browserContext().close();
  });

  test("a page returns no sooner than the server asks for, even if it is hidden and shown again or its content can be fetched", async () => {
    const between = await connect();
    // Before the page would fetch its content again in any case.
    const RETRY_MS = 8000;
    // On a busy machine, a page may not have done everything before it returns.
    const ATTEMPTS = 5;
    let close;
    between.stream = (request, response) => {
      // Without events of other tests, for which the page would fetch its content as well.
      if (!between.holdBack(request, response)) return false;
      const closing = { type: "closing", code: 1001, reason: "the server shuts down", reconnect: true, retry_ms: RETRY_MS };
      close = () => response.end(`data: ${JSON.stringify(closing)}\n\n`);
      return true;
    };
    const acts = {
      // The page notices that the network was away, fetches its content, and finds the server there.
      fetch: { act: () => dispatchEvent(new Event("offline")), expected: ["live", "connecting", "lost", "connecting", "live"] },
      hide: { act: `() => [true, false].forEach(${setHidden})`, expected: ["live", "connecting", "live"] },
    };
    for (const [name, { act, expected }] of Object.entries(acts)) {
      let states;
      for (let attempt = 0; attempt < ATTEMPTS && !isDeepStrictEqual(states, expected); attempt++) {
        close = undefined;
        const page = await visit(between);
        await is(page, "live");
        await page.evaluate(`(${actOnceClosed})(${act})`);
        between.seen.length = 0;
        const closed = performance.now();
        close?.(); // Without a stream, it polls.
        await until(() => between.seen.length, "it returns");
        const waited = between.seen[0].at - closed;
        await is(page, "live");
        states = await page.evaluate(() => globalThis.states);
        if (isDeepStrictEqual(states, expected)) assert.ok(waited > RETRY_MS - JITTER_MS, `${name}: ${waited} ms`);
        assert.deepEqual(page.problems, []);
        await page.browserContext().close();
      }
      assert.deepEqual(states, expected, name);
    }
  });

  test("a bad request ends the watch of a page, which says why and still shows what is new", async () => {
    for (const status of [400, 422]) {
      const between = await connect();
      between.stream = (_, response) => {
        response.writeHead(status, { "Content-Type": "application/problem+json" });
        response.end(JSON.stringify({ status, code: "bad-parameter", detail: "tick_ms is unknown" }));
        return true;
      };
      const page = await visit(between);
      await until(() => between.seen.length === 2, "the page was loaded again, in case that helps");
      await is(page, "refused");
      assert.match(await page.$eval("#freshness", ({ textContent }) => textContent), /^Not live \(tick_ms is unknown\), as of \d+ s ago$/);
      await job(`refused-${status}`);
      await refresh(page);
      await page.waitForSelector(`[data-key="job-refused-${status}"]`);
      // Longer than the time after which a page tries again.
      await until(async () => /as of [3-9] s ago/.test(await page.$eval("#freshness", ({ textContent }) => textContent)));
      assert.equal(between.seen.length, 2, "no request follows");
      between.stream = undefined;
      await hide(page, true);
      await hide(page, false);
      await is(page, "live");
      assert.deepEqual(page.problems, []);
      await page.browserContext().close();
      }
  });
});
