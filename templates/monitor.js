// Keeps a page of the monitor up to date. The server's own event stream reports changes. The script then fetches the page
// again, so that only the server renders, and updates only what differs.
//
// One of the visible tabs opens the stream (Web Locks) and forwards its messages to the others (BroadcastChannel). While no
// tab is visible there is no stream; it resumes from its cursor. Where Server-Sent Events do not work, the script uses
// long polling. A page whose content no event reports (open streams, commit times) is refreshed every
// few seconds.
"use strict";

const page = document.body.dataset;
const main = document.getElementById("main");
const status = document.getElementById("freshness");
const pause = document.getElementById("pause");
const REFRESH_MS = 1000; // minimum interval between two refreshes of the page
const RETRY_MS = 2000; // after a failure
const PAGE_MS = 8000; // time-out for fetching the page
const REFRESH_MAX_MS = 10000; // maximum interval between two refreshes of a visible page
const FIRST_MESSAGE_MS = 5000; // time-out for the first message of a stream; afterwards it is twice the heartbeat interval
const BUFFERED_MS = 3000; // after this time, a stream that is behind the page counts as buffered by a proxy
const SSE_TRIES = 2; // consecutive failures before long polling is used
const SSE_RETRY_MS = 300000; // until SSE is tried again
const POLL_SECS = 25;
const RELOAD_MS = 30000; // minimum interval between two reloads
const ANNOUNCE_MS = 5000; // minimum interval between two announcements
const ANNOUNCE_MAX = 3; // maximum number of events in one announcement; the others are counted

const DAY = { month: "short", day: "numeric" };
const MOMENT = { ...DAY, hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" };
const EXACT = new Intl.DateTimeFormat(undefined, MOMENT);
const EXACT_WITH_YEAR = new Intl.DateTimeFormat(undefined, { ...MOMENT, year: "numeric" });
const HOUR = new Intl.DateTimeFormat(undefined, { ...DAY, hour: "2-digit", minute: "2-digit", weekday: "short" });
let clockOffset = 0; // offset of the server's clock from the local clock
localize(document, page.renderedAt);
if (page.stream || page.renewSecs) start();

function start() {
  let cursor = page.cursor;
  let refreshedAt = performance.now(); // when the visible content was fetched
  let refreshFailed = false; // whether a refresh has failed since
  let state = page.stream ? "connecting" : "live";
  let paused = false;
  let due = null;
  let pending = false;
  let blocked = 0; // consecutive streams that a proxy buffered or rejected
  let leading = false; // whether this tab has the stream, or polls
  let streaming = null; // aborts the stream, if this tab has it
  const channel = "tidings:" + page.stream;
  // Over plain HTTP from another host, browsers have no locks: there each tab opens its own stream.
  const tabs = navigator.locks && new BroadcastChannel(channel);
  const announce = announcer(document.getElementById("milestones"));

  if (tabs) {
    tabs.onmessage = ({ data }) => {
      // A new tab asks for the current state.
      if (data.asks) return leading && tabs.postMessage({ cursor, state });
      apply(data);
    };
    tabs.postMessage({ asks: true });
  }

  function publish(message) {
    apply(message);
    tabs?.postMessage(message);
  }

  function apply({ cursor: at, state: now, changed, milestone }) {
    if (at && (seq(at) > seq(cursor) || epoch(at) !== epoch(cursor))) cursor = at;
    if (now) state = now;
    if (changed) scheduleRefresh();
    if (milestone && !paused) announce(milestone);
    show();
  }

  // Schedules a refresh soon, but not for every event.
  function scheduleRefresh() {
    pending = true;
    if (due || document.hidden || paused) return;
    const since = performance.now() - refreshedAt;
    due = setTimeout(refresh, refreshFailed ? RETRY_MS : Math.max(0, REFRESH_MS - since));
  }

  async function refresh() {
    pending = false;
    const at = performance.now();
    try {
      const signal = AbortSignal.timeout(PAGE_MS);
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, signal });
      if (answer.redirected || [401, 403, 404].includes(answer.status)) reload();
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      await new Promise(requestAnimationFrame);
      if (!paused) {
        localize(fresh, fresh.body.dataset.renderedAt);
        morph(main, fresh.getElementById("main"));
        document.title = fresh.title;
        refreshedAt = at;
      }
      checkStream(fresh.body.dataset.cursor);
      refreshFailed = false;
    } catch {
      refreshFailed = pending = true;
    }
    due = null;
    show();
    if (pending) scheduleRefresh();
  }

  // The stream must soon deliver what the page already shows, if it covers the whole school. A proxy may forward
  // the beginning of a stream and buffer the rest.
  function checkStream(head) {
    const own = streaming;
    if (!own || !page.stream.includes("/events/schools/") || seq(head) <= seq(cursor)) return;
    setTimeout(() => {
      if (own !== streaming || seq(head) <= seq(cursor)) return;
      blocked = SSE_TRIES - 1;
      own.abort();
    }, BUFFERED_MS);
  }

  function show() {
    const age = `as of ${span(performance.now() - refreshedAt)} ago`;
    const isOld = performance.now() - refreshedAt > REFRESH_MAX_MS + PAGE_MS;
    const now = paused ? "paused" : refreshFailed ? "lost" : isOld && state === "live" ? "connecting" : state;
    const text = {
      live: "Live",
      connecting: `Connecting, ${age}`,
      lost: `Connection lost, ${age}`,
      paused: `Paused, ${age}`,
    }[now];
    if (status.textContent !== text) status.textContent = text;
    status.dataset.state = now;
  }

  // Runs the stream while this tab has the lock and is visible; then another tab can take over.
  async function lead() {
    let failures = 0; // in a row
    leading = true;
    let pollUntil = 0;
    while (!document.hidden) {
      const stop = new AbortController();
      const hide = () => document.hidden && stop.abort();
      document.addEventListener("visibilitychange", hide);
      const begun = Date.now();
      let rest = 0;
      try {
        if (begun < pollUntil) {
          await poll(stop, POLL_SECS);
        } else if (blocked >= SSE_TRIES) {
          await poll(stop, 0);
          pollUntil = Date.now() + SSE_RETRY_MS;
          blocked = SSE_TRIES - 1;
        } else {
          streaming = stop;
          rest = await stream(stop);
          blocked = 0;
          // Do not reconnect in a tight loop if a proxy closes the stream at once.
          if (Date.now() - begun < RETRY_MS) rest ||= RETRY_MS;
        }
        failures = 0;
      } catch (error) {
        if (document.hidden) break;
          // If the server cannot be reached, the transport is not to blame.
        blocked = error instanceof TypeError ? 0 : blocked + 1;
        failures += 1;
        pollUntil = 0;
        publish({ state: "lost" });
        rest = failures > 1 && blocked !== SSE_TRIES ? RETRY_MS : 0;
      } finally {
        streaming = null;
        document.removeEventListener("visibilitychange", hide);
      }
      if (rest) await new Promise((done) => setTimeout(done, rest));
    }
    leading = false;
  }

  async function request(accept, more, signal) {
    const joint = page.stream.includes("?") ? "&" : "?";
    const address = `${page.stream}${joint}tick_ms=1000&cursor=${encodeURIComponent(cursor)}${more}`;
    const answer = await fetch(address, { headers: { Accept: accept }, signal, cache: "no-store" });
    if ([401, 403, 404].includes(answer.status)) reload();
    if (!answer.ok) throw new Error(answer.status);
    return answer;
  }

  function receive(message) {
    const silent = ["connected", "ready", "heartbeat", "closing"].includes(message.type);
    // After `closing`, no events arrive until there is a new stream.
    const state = message.type === "closing" ? "connecting" : "live";
    publish({ cursor: message.cursor, state, changed: !silent, milestone: milestone(message) });
  }

  // Reads the stream until the server closes it, and returns the delay that the server requests. Fails if the stream is silent.
  async function stream(stop) {
    let timeout = FIRST_MESSAGE_MS;
    let silence = setTimeout(() => stop.abort(), timeout);
    let pause = 0;
    try {
      const answer = await request("text/event-stream", "", stop.signal);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) {
          publish({ state: "connecting" });
          return pause;
        }
        clearTimeout(silence);
        silence = setTimeout(() => stop.abort(), timeout);
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const message = JSON.parse(block.match(/^data: (.*)$/m)[1]);
          if (message.heartbeat_secs) timeout = message.heartbeat_secs * 2000;
          if (message.type === "closing") {
            if (!message.reconnect) reload();
            pause = message.retry_ms;
          }
          receive(message);
        }
      }
    } finally {
      clearTimeout(silence);
    }
  }

  async function poll(stop, wait) {
    const silence = setTimeout(() => stop.abort(), wait * 1000 + FIRST_MESSAGE_MS);
    try {
      const answer = await request("application/json", `&wait=${wait}`, stop.signal);
      const { messages, cursor: at } = await answer.json();
      messages.forEach(receive);
      publish({ cursor: at, state: "live" });
      // With many events, every poll is answered at once.
      if (messages.length) await new Promise((done) => setTimeout(done, REFRESH_MS));
    } finally {
      clearTimeout(silence);
    }
  }

  function visible() {
    if (!document.hidden) return Promise.resolve();
    return new Promise((done) => {
      document.addEventListener("visibilitychange", () => done(visible()), { once: true });
    });
  }

  // If the tab is hidden or paused, a change is fetched later.
  document.addEventListener("visibilitychange", () => pending && scheduleRefresh());
  addEventListener("offline", () => {
    refreshFailed = true;
    scheduleRefresh();
    show();
  });
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    if (!paused) scheduleRefresh();
    show();
  });
  setInterval(() => {
    show();
    localize(document);
    if (performance.now() - refreshedAt > (page.renewSecs ? page.renewSecs * 1000 : REFRESH_MAX_MS)) scheduleRefresh();
  }, 1000);
  show();
  if (page.stream) (async () => {
    for (;;) {
      await visible();
      await (navigator.locks ? navigator.locks.request(channel, lead) : lead());
    }
  })();
}

// Reloads the page, but not in a loop: if the page is unchanged after a reload, another one is useless.
function reload() {
  const last = Number(sessionStorage.getItem("tidings:reload"));
  if (Math.abs(Date.now() - last) < RELOAD_MS) throw new Error("the server no longer gives access to this page");
  sessionStorage.setItem("tidings:reload", Date.now());
  location.reload();
}

// The parts of a cursor: <epoch>-<seq>-<tag>.
function seq(cursor) {
  return Number(cursor?.split("-")[1]);
}

function epoch(cursor) {
  return cursor?.split("-")[0];
}

// Returns the announcement for an event, or null. Ends and stalls are announced; other changes are only shown.
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
  if (type === "schedule_update" && ["missed", "late"].includes(event.status)) {
    return `Schedule ${event.schedule_id}: ${event.message}`;
  }
  if (type === "violation") return `Violation of ${payload.characteristic_id}: ${payload.rule_name}`;
  return null;
}

// Returns a function that announces texts: a few at a time, and with pauses.
function announcer(region) {
  let waiting = [];
  let timer = null;
  return (text) => {
    waiting.push(text);
    timer ??= setTimeout(() => {
      const more = waiting.length - ANNOUNCE_MAX;
      region.textContent = waiting.slice(0, ANNOUNCE_MAX).join(". ") + (more > 0 ? `. And ${more} more.` : ".");
      waiting = [];
      timer = null;
    }, ANNOUNCE_MS);
  };
}

// Shows times in the visitor's time zone and locale, together with their current age.
function localize(document, renderedAt) {
  if (renderedAt) clockOffset = Date.parse(renderedAt) - Date.now();
  const now = Date.now() + clockOffset;
  for (const time of document.querySelectorAll("#main time")) {
    const at = new Date(time.dateTime);
    if (time.dataset.form === "hour") {
      write(time, HOUR.format(at));
      continue;
    }
    const isThisYear = at.getFullYear() === new Date(now).getFullYear();
    write(time.querySelector(".ago"), relative(at - now));
    write(time.querySelector(".at"), (isThisYear ? EXACT : EXACT_WITH_YEAR).format(at));
  }
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Formats a distance in time as the server does.
function relative(distance) {
  if (Math.abs(distance) < 1000) return "now";
  return distance < 0 ? `${span(-distance)} ago` : `in ${span(distance)}`;
}

function span(ms) {
  const secs = Math.floor(ms / 1000);
  if (secs < 60) return `${secs} s`;
  const mins = Math.floor(secs / 60);
  if (mins < 60) return `${mins} min`;
  if (mins < 24 * 60) return `${Math.floor(mins / 60)} h` + (mins % 60 ? ` ${mins % 60} min` : "");
  return `${Math.floor(mins / 60 / 24)} d`;
}

// Makes `old` equal to `fresh` and changes only what differs. Forms in use and expanded sections stay as they are.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    return old.replaceWith(document.importNode(fresh, true));
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.nodeName === "FORM" && (old.contains(document.activeElement) || isFilled(old))) return;
  const isOpen = old.nodeName === "DETAILS" && old.open;
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(isOpen && name === "open")) old.removeAttribute(name);
  }
  const known = new Map();
  const wanted = new Set(Array.from(fresh.children, (child) => child.dataset.key));
  for (const child of [...old.children]) {
    if (!child.dataset.key) continue;
    // Remove obsolete children first: then the others need not move, and keep the focus.
    if (wanted.has(child.dataset.key)) known.set(child.dataset.key, child);
    else child.remove();
  }
  let at = old.firstChild;
  for (const child of fresh.childNodes) {
    const key = child.dataset?.key;
    const same = key ? known.get(key) : at?.dataset?.key ? null : at;
    if (!same) {
      old.insertBefore(document.importNode(child, true), at);
      continue;
    }
    known.delete(key);
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

// Whether a form has values that were changed but not sent.
function isFilled(form) {
  return [...form.elements].some((own) => own.type === "checkbox"
    ? own.checked !== own.defaultChecked
    : own.options
      ? [...own.options].some((option) => option.selected !== option.defaultSelected)
      : own.defaultValue !== undefined && own.value !== own.defaultValue);
}
