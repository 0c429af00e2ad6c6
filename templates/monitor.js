// Keeps a page of the monitor up to date. What changes is told by the server's own event stream; what it then
// looks like is asked of the server, so that there is one place that renders, and only what differs is touched.
//
// Of the tabs that are to be seen one has the stream (Web Locks) and tells the others (BroadcastChannel). While no
// tab is to be seen there is none; it goes on where it was, by cursor. Where Server-Sent Events do not come through,
// long polls do. A page about what no event tells of (who listens, how long commits take) is asked for anew every
// few seconds.
"use strict";

const page = document.body.dataset;
const main = document.getElementById("main");
const status = document.getElementById("freshness");
const pause = document.getElementById("pause");
const REFRESH_MS = 1000; // least time between two looks at the page
const RETRY_MS = 2000; // after a failure
const PAGE_MS = 8000; // until a page that does not come has failed
const ROUND_MS = 10000; // longest time without a look at a page that is seen
const GREETING_MS = 5000; // until a stream that says nothing has failed; afterwards twice its heartbeat
const HELD_MS = 3000; // until a stream that lags behind a page counts as held back
const SSE_TRIES = 2; // failures in a row before long polls are tried
const SSE_AGAIN_MS = 300000; // until they are given another try
const POLL_SECS = 25;
const RELOAD_MS = 30000; // least time between two reloads
const SAY_MS = 5000; // least time between two announcements
const SAY_MOST = 3; // what is announced at once; the others are counted

const DAY = { month: "short", day: "numeric" };
const MOMENT = { ...DAY, hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" };
const EXACT = new Intl.DateTimeFormat(undefined, MOMENT);
const EXACT_WITH_YEAR = new Intl.DateTimeFormat(undefined, { ...MOMENT, year: "numeric" });
const HOUR = new Intl.DateTimeFormat(undefined, { ...DAY, hour: "2-digit", minute: "2-digit", weekday: "short" });
let ahead = 0; // of the server's clock over ours
localize(document, page.renderedAt);
if (page.stream || page.renewSecs) start();

function start() {
  let cursor = page.cursor;
  let renewed = performance.now(); // what is seen is of this moment
  let behind = false; // whether a look at the page has failed since
  let state = page.stream ? "connecting" : "live";
  let paused = false;
  let due = null;
  let asked = false;
  let mute = 0; // streams in a row that were held back or refused by whatever lies between
  let leading = false; // whether this tab has the stream, or polls
  let streaming = null; // ends the stream, if this tab has it
  const channel = "tidings:" + page.stream;
  // Over plain HTTP from another host browsers have no locks: there each tab has a stream of its own.
  const tabs = navigator.locks && new BroadcastChannel(channel);
  const say = announcer(document.getElementById("milestones"));

  if (tabs) {
    tabs.onmessage = ({ data }) => {
      // A tab that has just come wants to know how things are.
      if (data.asks) return leading && tabs.postMessage({ cursor, state });
      take(data);
    };
    tabs.postMessage({ asks: true });
  }

  function tell(message) {
    take(message);
    tabs?.postMessage(message);
  }

  function take({ cursor: at, state: now, changed, milestone }) {
    if (at && (seq(at) > seq(cursor) || epoch(at) !== epoch(cursor))) cursor = at;
    if (now) state = now;
    if (changed) plan();
    if (milestone && !paused) say(milestone);
    show();
  }

  // Looks at the page again soon, but not at every event.
  function plan() {
    asked = true;
    if (due || document.hidden || paused) return;
    const since = performance.now() - renewed;
    due = setTimeout(look, behind ? RETRY_MS : Math.max(0, REFRESH_MS - since));
  }

  async function look() {
    asked = false;
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
        renewed = at;
      }
      doubt(fresh.body.dataset.cursor);
      behind = false;
    } catch {
      behind = asked = true;
    }
    due = null;
    show();
    if (asked) plan();
  }

  // What is on a page must soon have been told by the stream, too, if that tells all of the school. A proxy may let
  // its beginning pass and hold back the rest.
  function doubt(head) {
    const own = streaming;
    if (!own || !page.stream.includes("/events/schools/") || seq(head) <= seq(cursor)) return;
    setTimeout(() => {
      if (own !== streaming || seq(head) <= seq(cursor)) return;
      mute = SSE_TRIES - 1;
      own.abort();
    }, HELD_MS);
  }

  function show() {
    const age = `as of ${span(performance.now() - renewed)} ago`;
    const isOld = performance.now() - renewed > ROUND_MS + PAGE_MS;
    const now = paused ? "paused" : behind ? "lost" : isOld && state === "live" ? "connecting" : state;
    const text = {
      live: "Live",
      connecting: `Connecting, ${age}`,
      lost: `Connection lost, ${age}`,
      paused: `Paused, ${age}`,
    }[now];
    if (status.textContent !== text) status.textContent = text;
    status.dataset.state = now;
  }

  // The stream, while this tab has the lock and somebody looks at it; then another tab may have its turn.
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
        } else if (mute >= SSE_TRIES) {
          await poll(stop, 0);
          pollUntil = Date.now() + SSE_AGAIN_MS;
          mute = SSE_TRIES - 1;
        } else {
          streaming = stop;
          rest = await stream(stop);
          mute = 0;
          // Not again and again, if somebody cuts it at once.
          if (Date.now() - begun < RETRY_MS) rest ||= RETRY_MS;
        }
        failures = 0;
      } catch (error) {
        if (document.hidden) break;
        // Nobody there is no fault of the way.
        mute = error instanceof TypeError ? 0 : mute + 1;
        failures += 1;
        pollUntil = 0;
        tell({ state: "lost" });
        rest = failures > 1 && mute !== SSE_TRIES ? RETRY_MS : 0;
      } finally {
        streaming = null;
        document.removeEventListener("visibilitychange", hide);
      }
      if (rest) await new Promise((done) => setTimeout(done, rest));
    }
    leading = false;
  }

  async function ask(accept, more, signal) {
    const joint = page.stream.includes("?") ? "&" : "?";
    const address = `${page.stream}${joint}tick_ms=1000&cursor=${encodeURIComponent(cursor)}${more}`;
    const answer = await fetch(address, { headers: { Accept: accept }, signal, cache: "no-store" });
    if ([401, 403, 404].includes(answer.status)) reload();
    if (!answer.ok) throw new Error(answer.status);
    return answer;
  }

  function hear(message) {
    const silent = ["connected", "ready", "heartbeat", "closing"].includes(message.type);
    // After `closing` no events come until there is another stream.
    const state = message.type === "closing" ? "connecting" : "live";
    tell({ cursor: message.cursor, state, changed: !silent, milestone: milestone(message) });
  }

  // Until the server closes, and then how long it wants to be left alone. Fails when nothing is heard.
  async function stream(stop) {
    let patience = GREETING_MS;
    let silence = setTimeout(() => stop.abort(), patience);
    let pause = 0;
    try {
      const answer = await ask("text/event-stream", "", stop.signal);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) {
          tell({ state: "connecting" });
          return pause;
        }
        clearTimeout(silence);
        silence = setTimeout(() => stop.abort(), patience);
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const message = JSON.parse(block.match(/^data: (.*)$/m)[1]);
          if (message.heartbeat_secs) patience = message.heartbeat_secs * 2000;
          if (message.type === "closing") {
            if (!message.reconnect) reload();
            pause = message.retry_ms;
          }
          hear(message);
        }
      }
    } finally {
      clearTimeout(silence);
    }
  }

  async function poll(stop, wait) {
    const silence = setTimeout(() => stop.abort(), wait * 1000 + GREETING_MS);
    try {
      const answer = await ask("application/json", `&wait=${wait}`, stop.signal);
      const { messages, cursor: at } = await answer.json();
      messages.forEach(hear);
      tell({ cursor: at, state: "live" });
      // Where much happens, every poll is answered at once.
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

  // What is heard by a tab that is not seen, or does not want to, is looked at later.
  document.addEventListener("visibilitychange", () => asked && plan());
  addEventListener("offline", () => {
    behind = true;
    plan();
    show();
  });
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (!paused) plan();
    show();
  });
  setInterval(() => {
    show();
    localize(document);
    if (performance.now() - renewed > (page.renewSecs ? page.renewSecs * 1000 : ROUND_MS)) plan();
  }, 1000);
  show();
  if (page.stream) (async () => {
    for (;;) {
      await visible();
      await (navigator.locks ? navigator.locks.request(channel, lead) : lead());
    }
  })();
}

// Once in a while, and not again and again: a page that comes back as it was has no use for it.
function reload() {
  const last = Number(sessionStorage.getItem("tidings:reload"));
  if (Math.abs(Date.now() - last) < RELOAD_MS) throw new Error("this page is not ours any more");
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

// Tells times as the visitor's clock and zone have them, and how long ago they are now.
function localize(document, renderedAt) {
  if (renderedAt) ahead = Date.parse(renderedAt) - Date.now();
  const now = Date.now() + ahead;
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

// In the words of the server.
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
    // What is gone goes first: then what stays need not move, and keeps the focus.
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

// Whether somebody has written into a form what is not sent yet.
function isFilled(form) {
  return [...form.elements].some((own) => own.type === "checkbox"
    ? own.checked !== own.defaultChecked
    : own.options
      ? [...own.options].some((option) => option.selected !== option.defaultSelected)
      : own.defaultValue !== undefined && own.value !== own.defaultValue);
}
