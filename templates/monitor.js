// Keeps a page of the monitor up to date. What changes is told by the server's own event stream; what it then
// looks like is asked of the server, so that there is one place that renders, and only what differs is touched.
//
// Of the tabs that are to be seen one has the stream (Web Locks) and tells the others (BroadcastChannel). While no
// tab is to be seen there is none; it goes on where it was, by cursor. A stream that fails is followed by a long poll.
// A page about what no event tells of (who listens, how long commits take) is asked for anew every few seconds.
"use strict";

const page = document.body.dataset;
const status = document.getElementById("freshness");
const REFRESH_MS = 1000; // least time between two looks at the page
const RETRY_MS = 2000;
const GREETING_MS = 5000; // until a stream that says nothing counts as failed
const SSE_TRIES = 2; // failures in a row before long polls are tried
const SAY_MS = 5000; // least time between two announcements
const SAY_MOST = 3; // what is announced at once; the others are counted

if (status && (page.stream || page.renewSecs)) start();

function start() {
  let cursor = page.cursor;
  let renewed = Date.now();
  let state = "connecting";
  let due = null;
  let asked = false;
  const channel = "tidings:" + page.stream;
  const tabs = new BroadcastChannel(channel);
  const say = announcer(document.getElementById("milestones"));

  tabs.onmessage = ({ data }) => take(data);

  function tell(message) {
    take(message);
    tabs.postMessage(message);
  }

  function take({ cursor: at, state: now, changed, milestone }) {
    if (at) cursor = at;
    if (now) state = now;
    if (changed) plan();
    if (milestone) say(milestone);
    show();
  }

  // Looks at the page again soon, but not at every event.
  function plan() {
    if (due || document.hidden) return void (asked = true);
    due = setTimeout(async () => {
      due = null;
      asked = false;
      await refresh();
      if (asked) plan();
    }, Math.max(0, renewed + REFRESH_MS - Date.now()));
  }

  async function refresh() {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected || !answer.ok) return location.reload();
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      requestAnimationFrame(() => {
        morph(document.getElementById("main"), fresh.getElementById("main"));
        document.title = fresh.title;
      });
      renewed = Date.now();
      if (!page.stream) state = "live";
    } catch {
      state = "lost";
    }
    show();
  }

  function show() {
    const age = Math.round((Date.now() - renewed) / 1000);
    const text = {
      live: "Live",
      connecting: `Connecting; as of ${age} s ago`,
      lost: `Connection lost; as of ${age} s ago`,
    }[state];
    if (status.textContent !== text) status.textContent = text;
    status.dataset.state = state;
  }

  // The stream, while this tab has the lock and somebody looks at it; then another tab may have its turn.
  async function lead() {
    let failures = 0;
    while (!document.hidden) {
      const way = failures < SSE_TRIES ? stream : poll;
      try {
        await way();
        failures = 0;
      } catch {
        failures += 1;
        tell({ state: "lost" });
        await new Promise((done) => setTimeout(done, RETRY_MS));
      }
    }
  }

  function address() {
    const joint = page.stream.includes("?") ? "&" : "?";
    return `${page.stream}${joint}tick_ms=1000&cursor=${encodeURIComponent(cursor)}`;
  }

  function hear(message, at) {
    if (message.type === "closing") return;
    const silent = ["connected", "ready", "heartbeat"].includes(message.type);
    tell({ cursor: message.cursor || at, state: "live", changed: !silent, milestone: milestone(message) });
  }

  function stream() {
    return new Promise((done, failed) => {
      const source = new EventSource(address());
      // A proxy that holds the stream back says nothing; the server greets at once.
      const silence = setTimeout(() => end(failed), GREETING_MS);
      const end = (how) => {
        clearTimeout(silence);
        source.close();
        document.removeEventListener("visibilitychange", pause);
        how();
      };
      const pause = () => document.hidden && end(done);
      document.addEventListener("visibilitychange", pause);
      source.onmessage = ({ data, lastEventId }) => {
        clearTimeout(silence);
        hear(JSON.parse(data), lastEventId);
      };
      source.onerror = () => end(failed);
    });
  }

  async function poll() {
    const answer = await fetch(address() + "&wait=25", { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(answer.status);
    const { messages, cursor: at } = await answer.json();
    messages.forEach((message) => hear(message, at));
    tell({ cursor: at, state: "live" });
  }

  function visible() {
    if (!document.hidden) return Promise.resolve();
    return new Promise((done) => {
      document.addEventListener("visibilitychange", () => document.hidden || done());
    });
  }

  document.addEventListener("visibilitychange", () => !document.hidden && asked && plan());
  setInterval(show, 1000);
  if (page.renewSecs) {
    plan();
    setInterval(plan, page.renewSecs * 1000);
  }
  if (page.stream) (async () => {
    for (;;) {
      await visible();
      await navigator.locks.request(channel, lead);
    }
  })();
}

// What an event is worth announcing as, if it is: what began or got stuck is seen, what ended is also said.
function milestone(event) {
  const { type, snapshot, payload } = event;
  if (snapshot) return null;
  const ended = ["completed", "failed", "cancelled"];
  if (type === "job_progress" && (event.stalled || ended.includes(event.status.toLowerCase()))) {
    return `Job ${event.job_id} ${event.stalled ? "stalled" : event.status}`;
  }
  if (type === "enrollment_complete") return `Enrollment ${event.session_id} complete`;
  if (type === "enrollment_error") return `Enrollment ${event.session_id} failed: ${event.error}`;
  if (type === "device_status_update") return `Device ${event.device_id} ${event.status}`;
  if (type === "violation") return `Violation of ${payload.characteristic_id}: ${payload.rule_name}`;
  return null;
}

// Says a few things at a time, and not all the time.
function announcer(region) {
  let waiting = [];
  let timer = null;
  return (text) => {
    waiting.push(text);
    timer ??= setTimeout(() => {
      const more = waiting.length - SAY_MOST;
      region.textContent = waiting.slice(0, SAY_MOST).join(". ") + (more > 0 ? `. And ${more} more.` : ".");
      waiting = [];
      timer = null;
    }, SAY_MS);
  };
}

// Makes `old` look like `fresh`, touching only what differs. Who types or has something open is left alone.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    return old.replaceWith(document.importNode(fresh, true));
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.nodeName === "FORM" && old.contains(document.activeElement)) return;
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  const known = new Map();
  for (const child of old.children) if (child.dataset.key) known.set(child.dataset.key, child);
  let at = old.firstChild;
  for (const child of fresh.childNodes) {
    const key = child.dataset?.key;
    const same = key ? known.get(key) : at?.dataset?.key ? null : at;
    if (!same) {
      old.insertBefore(document.importNode(child, true), at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    morph(same, child);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}
