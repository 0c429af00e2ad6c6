// In Chromium: tabs that share a connection, reloads, the elements, and the examples.
import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, describe, test } from "node:test";
import { examples } from "../examples/server.js";
import { chromium, proxy, tidings, token, until } from "./support.js";

describe("browser", () => {
  let server;
  let site;
  let url;
  let browser;
  const streams = []; // requests of streams that reached the site
  const connected = new Set(); // responses of streams that the site is sending

  before(async () => {
    site = examples({ tidings: () => server.url, token: () => token("viewer", 3600) });
    site.prependListener("request", ({ url, headers }, response) => {
      if (!url.startsWith("/events")) return;
      streams.push(`${headers.accept} ${url}`);
      connected.add(response);
      response.on("close", () => connected.delete(response));
    });
    site.listen(0, "127.0.0.1");
    await once(site, "listening");
    url = `http://127.0.0.1:${site.address().port}`;
    server = await tidings({ TIDINGS_HEARTBEAT_SECS: "1", TIDINGS_ALLOWED_ORIGINS: JSON.stringify([url]) });
    browser = await chromium();
  });
  after(async () => {
    await browser?.close();
    site?.closeAllConnections();
    site?.close();
    await server?.remove();
  });

  const open = async (path) => {
    const page = await browser.newPage();
    page.problems = [];
    page.on("pageerror", (error) => page.problems.push(error.message));
    await page.goto(url + path);
    return page;
  };
  /** A page that watches a scope, and keeps what it hears. */
  const watcher = async (scope, options = {}) => {
    const page = await open("/blank.html");
    await start(page, scope, options);
    return page;
  };
  const start = (page, scope, options = {}) =>
    page.evaluate(
      async (scope, options) => {
        const { watch } = await import("/client/index.js");
        const token = () => fetch("/token").then((answer) => answer.text());
        globalThis.heard = [];
        globalThis.watching = watch(scope, {
          token,
          ...options,
          onTiding: ({ type, seq, snapshot, status, message }) => globalThis.heard.push({ type, seq, snapshot, status, message }),
        });
        globalThis.watching.finished.catch((error) => globalThis.heard.push({ type: "failed", message: error.message }));
      },
      scope,
      options,
    );
  const heard = (page) => page.evaluate(() => globalThis.heard);
  const seqs = async (page) => (await heard(page)).filter(({ seq, snapshot }) => seq && !snapshot).map(({ seq }) => seq);
  const ready = (page) => until(async () => (await heard(page)).some(({ type }) => type === "ready"), "ready");
  const text = (page, selector) => page.$eval(selector, (element) => element.textContent).catch(() => undefined);
  /** Reads a part of an element's shadow tree. */
  const part = (page, selector, name, read = "textContent") =>
    page.$eval(selector, (element, name, read) => element.shadowRoot?.querySelector(`[part=${name}]`)?.[read], name, read).catch(() => undefined);

  test("tabs share one connection, each gets every event once, and another takes over when the leader closes", async () => {
    await server.post("jobs", { job_id: "shared", job_type: "shared" });
    await server.post("jobs/shared/start");
    streams.length = 0;
    const tabs = [];
    for (let index = 0; index < 4; index++) {
      tabs.push(await watcher("jobs/shared", { query: { tick_ms: 0 } }));
      await ready(tabs[index]);
    }
    assert.equal(streams.length, 1, streams.join("\n"));
    const events = [];
    const report = async (count) => {
      for (let index = 0; index < count; index++) events.push((await server.post("jobs/shared/progress", { message: `${events.length}` })).seq);
    };
    await report(5);
    for (const tab of tabs) await until(async () => (await seqs(tab)).length === 5);
    // The leader closes while nothing happens.
    await tabs.shift().close();
    await until(() => streams.length === 2, "another leader");
    await report(5);
    for (const tab of tabs) await until(async () => (await seqs(tab)).length === 10);
    assert.equal(streams.length, 2, streams.join("\n"));
    // The leader closes while events come.
    const closing = tabs.shift().close();
    await report(20);
    await closing;
    await report(5);
    for (const tab of tabs) {
      await until(async () => (await seqs(tab)).length >= 35);
      assert.deepEqual(await seqs(tab), events);
    }
    // The other tab may have lacked events of the old leader, and have asked the new one to resume from its cursor.
    assert.ok(streams.length <= 4, streams.join("\n"));
    await until(() => connected.size === 1, "one connection");
    for (const tab of tabs) await tab.close();
  });

  test("tabs that start at a cursor and name the user share one connection, and each gets what is behind its cursor", async () => {
    await server.post("jobs", { job_id: "at", job_type: "at" });
    const old = (await server.post("jobs/at/start")).cursor;
    const { cursor, seq } = await server.post("jobs/at/progress", { message: "before" });
    const options = { identity: "me", subjects: false, query: { tick_ms: 0 } };
    streams.length = 0;
    const tabs = [];
    for (let index = 0; index < 3; index++) {
      tabs.push(await watcher("jobs/at", { ...options, cursor }));
      await ready(tabs[index]);
    }
    assert.equal(streams.length, 1, streams.join("\n"));
    const expected = [(await server.post("jobs/at/progress", { message: "after" })).seq];
    for (const tab of tabs) await until(async () => (await seqs(tab)).length === 1);
    // One that begins earlier gets what it lacks. The others get nothing twice.
    const late = await watcher("jobs/at", { ...options, cursor: old });
    await until(async () => (await seqs(late)).length === 2);
    assert.deepEqual(await seqs(late), [seq, ...expected]);
    await ready(late);
    await tabs.shift().close();
    expected.push((await server.post("jobs/at/progress", { message: "another leader" })).seq);
    for (const tab of tabs) {
      await until(async () => (await seqs(tab)).length === 2);
      assert.deepEqual(await seqs(tab), expected);
      const snapshot = await tab.evaluate(() => {
        const { status, subjects } = globalThis.watching.getSnapshot();
        return [status, subjects.size, sessionStorage.length];
      });
      assert.deepEqual(snapshot, ["live", 0, 0], "no state is kept or stored");
    }
    for (const tab of [...tabs, late]) await tab.close();
  });

  test("a tab whose cursor is of another life of the log is reset, with all others", async () => {
    await server.post("jobs", { job_id: "life", job_type: "life" });
    const { cursor } = await server.post("jobs/life/start");
    const options = { identity: "me", query: { tick_ms: 0 } };
    const first = await watcher("jobs/life", { ...options, cursor });
    await ready(first);
    const [, , tag] = cursor.split("-");
    const second = await watcher("jobs/life", { ...options, cursor: `0000000000000000-999999-${tag}` });
    for (const page of [first, second]) {
      await until(async () => (await heard(page)).some(({ type }) => type === "reset"), "reset");
      await until(async () => (await heard(page)).at(-1).type === "ready", "ready");
    }
    const { seq } = await server.post("jobs/life/progress", { message: "known to both" });
    for (const page of [first, second]) {
      await until(async () => (await seqs(page)).length === 1);
      assert.deepEqual(await seqs(page), [seq]);
      await page.close();
    }
  });

  test("a leader that hangs is replaced, and follows afterwards", async () => {
    await server.post("jobs", { job_id: "hung", job_type: "hung" });
    const first = await watcher("jobs/hung", { query: { tick_ms: 0 } });
    await ready(first);
    // The follower's checks are twenty times as frequent, so that the test takes seconds.
    const second = await browser.newPage();
    await second.evaluateOnNewDocument(() => {
      const { setInterval } = globalThis;
      globalThis.setInterval = (act, ms) => setInterval(act, ms / 20);
    });
    await second.goto(`${url}/blank.html`);
    await start(second, "jobs/hung", { query: { tick_ms: 0 } });
    await ready(second);
    streams.length = 0;
    const hang = first.evaluate(() => {
      const end = performance.now() + 8_000;
      while (performance.now() < end);
    });
    const events = [];
    const report = async (message) => events.push((await server.post("jobs/hung/progress", { message })).seq);
    await report("while the leader hangs");
    await until(async () => (await seqs(second)).length === 1, "the follower has taken over");
    assert.equal(streams.length, 1, streams.join("\n"));
    await hang;
    await report("afterwards");
    for (const page of [first, second]) {
      await until(async () => (await seqs(page)).length === 2);
      assert.deepEqual(await seqs(page), events);
    }
    await first.close();
    await second.close();
  });

  test("tabs of different users do not share", async () => {
    await server.post("jobs", { job_id: "users", job_type: "users" });
    streams.length = 0;
    const pages = [await watcher("jobs/users", { identity: "a" }), await watcher("jobs/users", { identity: "b" })];
    for (const page of pages) await ready(page);
    assert.equal(streams.length, 2);
    for (const page of pages) await page.close();
  });

  test("a reloaded page goes on where it was", async () => {
    await server.post("jobs", { job_id: "reload", job_type: "reload" });
    const page = await watcher("jobs/reload", { query: { tick_ms: 0 } });
    await ready(page);
    await server.post("jobs/reload/start");
    await until(async () => (await seqs(page)).length === 1);
    await page.goto("about:blank");
    const missed = [];
    for (let index = 0; index < 3; index++) missed.push((await server.post("jobs/reload/progress", { message: `${index}` })).seq);
    await page.goto(`${url}/blank.html`).catch(() => {});
    streams.length = 0;
    await start(page, "jobs/reload", { query: { tick_ms: 0 } });
    await until(async () => (await seqs(page)).length === 3);
    assert.deepEqual(await seqs(page), missed);
    const [first] = await heard(page);
    assert.deepEqual([first.snapshot, first.status], [true, "in_progress"], "the state before the reload comes first");
    assert.match(streams[0], /lastEventId=/);
    await page.close();
  });

  for (const transport of ["sse", "websocket", "poll"])
    test(`${transport}: a page of another origin is cut off, goes on, and misses nothing`, async () => {
      const id = `cut-${transport}`;
      await server.post("jobs", { job_id: id, job_type: "cut" });
      const between = await proxy(() => server.port);
      const page = await watcher(`jobs/${id}`, { server: between.url, transports: [transport], query: { tick_ms: 0 } });
      await ready(page);
      const events = [];
      for (let index = 0; index < 9; index++) {
        events.push((await server.post(`jobs/${id}/progress`, { message: `${index}` })).seq);
        if (index % 3 === 2) between.cut();
      }
      await until(async () => (await seqs(page)).length >= events.length);
      assert.deepEqual(await seqs(page), events);
      assert.equal((await heard(page)).filter(({ type }) => type === "ready").length, 1);
      await page.close();
      await between.stop();
    });

  test("a worker of a page watches, too", async () => {
    await server.post("jobs", { job_id: "worker", job_type: "worker" });
    const page = await open("/blank.html");
    const types = await page.evaluate(async () => {
      const source = `
        import { watch } from "${location.origin}/client/index.js";
        const token = () => fetch("${location.origin}/token").then((answer) => answer.text());
        const types = [];
        for await (const { type } of watch("jobs/worker", { server: "${location.origin}", token })) {
          types.push(type);
          if (type === "ready") postMessage(types);
        }`;
      const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
      return new Promise((done) => {
        worker.onmessage = ({ data }) => done(data);
      });
    });
    assert.deepEqual(types, ["job_progress", "ready"]);
    await page.close();
  });

  test("a store of the page that holds something else is passed over", async () => {
    await server.post("jobs", { job_id: "stored", job_type: "stored" });
    const page = await watcher("jobs/stored");
    await ready(page);
    for (const wrong of ["null", "[]", "{", '"text"']) {
      // After the page has stored its state, and before the next one reads it.
      await page.reload();
      await page.evaluate((wrong) => {
        localStorage.setItem(`tidings:blocked:${location.origin}`, wrong);
        const names = Object.keys(sessionStorage).filter((name) => name.includes("jobs/stored"));
        for (const name of names) sessionStorage.setItem(name, wrong);
        if (!names.length) throw new Error("nothing is stored");
      }, wrong);
      await start(page, "jobs/stored");
      await ready(page);
    }
    await page.evaluate(() => localStorage.clear());
    await page.close();
  });

  test("a page that may not share or store anything watches by itself", async () => {
    await server.post("jobs", { job_id: "sandboxed", job_type: "sandboxed" });
    const { ticket } = await server.post("tickets", { channels: ["jobs/sandboxed"] });
    // As a frame with `sandbox="allow-scripts"`: its origin is no other's, not even its server's.
    const sandbox = (request, response) => {
      response.setHeader("Access-Control-Allow-Origin", "*");
      if (request.url === "/blank.html") response.setHeader("Content-Security-Policy", "sandbox allow-scripts");
    };
    site.prependListener("request", sandbox);
    const page = await open("/blank.html");
    const refused = await page.evaluate(() =>
      navigator.locks.request("any", () => "").catch(({ name }) => name),
    );
    assert.equal(refused, "SecurityError");
    await page.evaluate(async (ticket) => {
      const { watch } = await import("/client/index.js");
      globalThis.heard = [];
      const onTiding = ({ type }) => globalThis.heard.push({ type });
      watch("jobs/sandboxed", { ticket: () => ticket, onTiding }).finished.catch(({ message }) =>
        globalThis.heard.push({ type: "failed", message }),
      );
    }, ticket);
    await until(async () => (await heard(page)).length === 2);
    await server.post("jobs/sandboxed/start");
    await until(async () => (await heard(page)).length === 3);
    assert.deepEqual(
      (await heard(page)).map(({ type }) => type),
      ["job_progress", "ready", "job_progress"],
    );
    assert.deepEqual(page.problems, []);
    site.off("request", sandbox);
    await page.close();
  });

  test("the end of a job arrives, however many bytes its characters take", async () => {
    const page = await open("/blank.html");
    const secret = token("worker");
    const arrived = await page.evaluate(async (secret) => {
      const { report } = await import("/client/index.js");
      const job = report("long", { id: "long", token: () => secret, giveUpMs: 3000 });
      return job.complete({ text: "ü".repeat(40_000) });
    }, secret);
    assert.equal(arrived, true);
    assert.equal((await server.call("GET", "/api/jobs/long")).result.text.length, 40_000);
    await page.close();
  });

  test("what a network does not permit is remembered over a reload", async () => {
    // The site passes no Upgrade on, and holds back SSE for this page.
    const hold = (request, response) => {
      if (request.url.includes("held") && request.headers.accept === "text/event-stream") {
        request.url = "/never";
        response.writeHead = () => response;
        response.end = () => response;
      }
    };
    site.prependListener("request", hold);
    const page = await watcher("jobs", { query: { held: 1 }, persist: false });
    await ready(page);
    assert.equal(await page.evaluate(() => globalThis.watching.getSnapshot().transport), "poll");
    await page.reload();
    streams.length = 0;
    await start(page, "jobs", { query: { held: 1 }, persist: false });
    await ready(page);
    assert.ok(streams.length > 0 && streams.every((stream) => stream.startsWith("application/json")), streams.join("\n"));
    await page.evaluate(() => localStorage.clear());
    site.off("request", hold);
    await page.close();
  });

  test("a progress element shows a job, is a progressbar, and announces only that it stalls or ends", async () => {
    await server.post("jobs", { job_id: "el", job_type: "x", metadata: { title: "Nightly backup" }, stall_after_secs: 1 });
    const page = await open("/plain.html");
    await page.evaluate(() => {
      document.body.insertAdjacentHTML("beforeend", '<tidings-progress id="one" job="el"><progress></progress></tidings-progress>');
      globalThis.said = [];
      const watch = () => {
        const place = document.querySelector("#one")?.shadowRoot?.querySelector("[part=announcement]");
        if (!place) return requestAnimationFrame(watch);
        new MutationObserver(() => globalThis.said.push(place.textContent)).observe(place, { childList: true, characterData: true, subtree: true });
      };
      watch();
    });
    await until(async () => (await part(page, "#one", "label")) === "Nightly backup");
    await server.post("jobs/el/start");
    for (let progress = 1; progress <= 40; progress++) await server.post("jobs/el/progress", { progress, message: `Part ${progress}` });
    const bar = () =>
      page.$eval("#one", (element) => {
        const own = element.shadowRoot.querySelector("[role=progressbar]");
        return ["aria-valuemin", "aria-valuemax", "aria-valuenow", "aria-valuetext"].map((name) => own.getAttribute(name));
      });
    await until(async () => (await bar())[2] === "40");
    assert.deepEqual(await bar(), ["0", "100", "40", null]);
    assert.deepEqual(await page.evaluate(() => globalThis.said), [], "progress is not announced");
    const tree = await page.accessibility.snapshot({ interestingOnly: false });
    const find = (node) => (node.role === "progressbar" && node.name === "Nightly backup" ? node : (node.children ?? []).map(find).find(Boolean));
    assert.ok(find(tree), "assistive technology finds it by its name");
    await until(async () => (await page.evaluate(() => globalThis.said)).length === 1, "it stalls");
    await server.post("jobs/el/progress", { progress: 41 });
    await until(async () => (await bar())[2] === "41");
    await server.post("jobs/el/fail", { error: { code: "disk", message: "The disk is full" } });
    await until(async () => (await page.evaluate(() => globalThis.said)).length === 2);
    assert.deepEqual(await page.evaluate(() => globalThis.said), ["Nightly backup: stalled", "Nightly backup: failed, The disk is full"]);
    assert.equal(await page.$eval("#one", (element) => element.getAttribute("status")), "failed");
    assert.deepEqual(page.problems, []);
    await page.close();
  });

  test("many elements share one connection, and one whose job does not exist yet appears later", async () => {
    for (let index = 0; index < 12; index++) await server.post("jobs", { job_id: `m${index}`, job_type: "many" });
    const page = await open("/blank.html");
    streams.length = 0;
    await page.evaluate(async () => {
      const { configure } = await import("/client/elements.js");
      configure({ tickets: "/tickets" });
      for (let index = 0; index < 13; index++) document.body.insertAdjacentHTML("beforeend", `<tidings-progress class="many" job="m${index}"></tidings-progress>`);
    });
    await until(async () => (await page.$$eval(".many", (all) => all.filter((one) => one.getAttribute("status") === "pending").length)) === 12);
    assert.equal(await page.$eval(".many:last-child", (one) => one.getAttribute("connection")), "missing");
    assert.ok(streams.filter((stream) => stream.includes("m1")).length <= 3, streams.join("\n"));
    await server.post("jobs", { job_id: "m12", job_type: "many" });
    await until(async () => (await page.$eval(".many:last-child", (one) => one.getAttribute("status"))) === "pending");
    await page.close();
  });

  test("the list shows active jobs first, and says how many more there are", async () => {
    for (let index = 0; index < 4; index++) await server.post("jobs", { job_id: `l${index}`, job_type: "listed" });
    for (const id of ["l0", "l1"]) await server.post(`jobs/${id}/complete`);
    const page = await open("/plain.html");
    await page.evaluate(() => document.body.insertAdjacentHTML("beforeend", '<tidings-jobs id="list" job-type="listed" limit="3"></tidings-jobs>'));
    const rows = () =>
      page.$eval("#list", ({ shadowRoot }) =>
        [...(shadowRoot?.querySelectorAll("li > *") ?? [])].map((row) => row.shadowRoot.querySelector("[part=label]").textContent),
      );
    await until(async () => (await rows()).length === 3);
    assert.deepEqual(await rows(), ["l2", "l3", "l1"]);
    assert.equal(await part(page, "#list", "more"), "and 1 more");
    await server.post("jobs/l2/complete");
    await until(async () => (await rows())[0] === "l3");
    if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT });
    assert.deepEqual(await rows(), ["l3", "l2", "l1"]);
    await page.close();
  });

  test("example: a plain page", async () => {
    await server.post("jobs", { job_id: "plain", job_type: "plain" });
    const page = await open("/plain.html");
    await until(async () => (await text(page, "#log"))?.includes("plain pending"));
    await server.post("jobs/plain/complete");
    await until(async () => (await text(page, "#log")).includes("plain completed"));
    assert.deepEqual(page.problems, []);
    await page.close();
  });

  test("example: htmx", async () => {
    await server.post("jobs", { job_id: "hx", job_type: "htmx" });
    const page = await open("/htmx.html?job=hx");
    await until(async () => (await text(page, ".rendered")) === "pending");
    await until(async () => (await part(page, "tidings-progress", "label")) === "hx");
    await server.post("jobs/hx/complete");
    await until(async () => (await text(page, ".rendered")) === "completed");
    await until(async () => (await page.$eval("tidings-progress", (element) => element.getAttribute("status"))) === "completed");
    assert.deepEqual(page.problems, []);
    await page.close();
  });

  test("example: Datastar", async () => {
    await server.post("jobs", { job_id: "ds", job_type: "datastar" });
    const page = await open("/datastar.html?job=ds");
    await until(async () => (await part(page, "tidings-progress", "label")) === "ds");
    await server.post("jobs/ds/start");
    await server.post("jobs/ds/progress", { progress: 30 });
    await until(async () => (await text(page, "#progress")) === "30");
    await until(async () => (await text(page, "#last")) === "ds in_progress");
    assert.deepEqual(page.problems, []);
    await page.close();
  });

  test("example: React", async () => {
    await server.post("jobs", { job_id: "re", job_type: "react" });
    const page = await open("/react.html");
    await until(async () => (await text(page, "#status")) === "live");
    await page.type("input", "react");
    await until(async () => (await page.$$eval("li", (all) => all.map((one) => one.textContent))).join() === "re: pending");
    await server.post("jobs/re/start");
    await until(async () => (await text(page, "li")) === "re: in_progress");
    await until(async () => (await page.$eval("li tidings-progress", (element) => element.getAttribute("status"))) === "in_progress");
    assert.deepEqual(page.problems, []);
    await page.close();
  });
});
