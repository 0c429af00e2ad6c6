// Keeps a page of the monitor up to date. A watch of the JavaScript client reports changes. The script then fetches the page
// again, so that only the server renders, and updates only what differs.
//
// The visible tabs share one connection. A hidden tab closes its watch, and opens it again at its cursor. A page whose content
// no event reports (open streams, commit times) is refreshed every few seconds.
//
// `npm run embed` in `clients/js` builds this file, with the client, into `monitor.bundle.js`, which pages load.
import { placeOf } from "../clients/js/src/story.ts";
import { watch } from "../clients/js/src/watch.ts";

const page = document.body.dataset;
const main = document.getElementById("main");
const status = document.getElementById("freshness");
const pause = document.getElementById("pause");
const REFRESH_MS = 1000; // minimum interval between two refreshes of the page, and between two long polls
const RETRY_MS = 2000; // after a failure
const PAGE_MS = 8000; // time-out for fetching the page
const REFRESH_MAX_MS = 10000; // maximum interval between two refreshes of a visible page
const BUFFERED_MS = 3000; // after this time, a stream that is behind the page counts as buffered by a proxy
const SSE_RETRY_MS = 300000; // until SSE is tried again
const POLL_UNTIL = "tidings:poll-until"; // in the storage of the tab
const REFUSED = [400, 422]; // the next attempt would be the same bad request
const TICK_MS = 1000; // minimum interval between two events about the progress of one subject
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
  let watching = null; // the watch; a hidden tab has none
  let pollUntil = recall(); // until then, long poll is used because a proxy buffers streams
  let notBefore = 0; // the server asked for no connection before this time
  let opening = null; // the timer that opens a watch at `notBefore`
  let refusal = ""; // why the server refused the watch for good
  const [scope, options] = page.stream ? address(page.stream) : [];
  const announce = announcer(document.getElementById("milestones"));

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
      // The server is back: do not wait for the watch's next attempt, unless the server has set its time.
      if (refreshFailed && state !== "live" && performance.now() >= notBefore) reopen();
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
    const own = watching;
    const isBehind = () => own === watching && placeOf(head).seq > placeOf(cursor).seq;
    if (!own || !page.stream.includes("/events/schools/") || !isBehind()) return;
    setTimeout(() => {
      if (!isBehind()) return;
      const { transport, error } = own.getSnapshot();
      // A new snapshot or a lost connection does not mean that a proxy buffers the stream.
      if (!cursor || error || transport !== "sse") return;
      pollUntil = Date.now() + SSE_RETRY_MS;
      remember(pollUntil);
      leavePolls();
      reopen();
    }, BUFFERED_MS);
  }

  // Tries SSE again at `pollUntil`.
  function leavePolls() {
    const wait = pollUntil - Date.now();
    if (wait > 0) setTimeout(reopen, wait + RETRY_MS); // timers are not exact
  }

  function show() {
    const age = `as of ${span(performance.now() - refreshedAt)} ago`;
    const isOld = performance.now() - refreshedAt > REFRESH_MAX_MS + PAGE_MS;
    const now = paused ? "paused" : refreshFailed ? "lost" : isOld && state === "live" ? "connecting" : state;
    const text = {
      live: "Live",
      connecting: `Connecting, ${age}`,
      lost: `Connection lost, ${age}`,
      refused: `Not live (${refusal}), ${age}`,
      paused: `Paused, ${age}`,
    }[now];
    if (status.textContent !== text) status.textContent = text;
    status.dataset.state = now;
  }

  function open() {
    // No WebSocket: `connect-src 'self'` does not cover it in every browser.
    const transports = Date.now() < pollUntil ? ["poll"] : ["sse", "poll"];
    const onTiding = (tiding) => {
      if (own !== watching || tiding.type === "ready") return;
      scheduleRefresh();
      const text = milestone(tiding);
      if (text && !paused) announce(text);
    };
    const limits = { blockedMs: SSE_RETRY_MS, pollGapMs: REFRESH_MS };
    const own = watch(scope, { ...options, ...limits, cursor, transports, subjects: false, onTiding });
    let known = null;
    watching = own;
    own.subscribe(() => {
      if (own !== watching) return;
      const now = own.getSnapshot();
      cursor = now.cursor;
      if (now.error !== known) {
        known = now.error;
        if (known?.retryMs) notBefore = performance.now() + known.retryMs;
      }
      // A number is the code with which the server closed the stream.
      const isLost = now.error && typeof now.error.code !== "number";
      state = now.status === "live" ? "live" : isLost ? "lost" : "connecting";
      show();
    });
    // A watch ends only if the server no longer gives access, or has closed the stream without asking to reconnect.
    own.finished.catch((error) => error).then((error) => {
      if (own !== watching) return;
      watching = null;
      const isRefused = REFUSED.includes(error?.status);
      state = isRefused ? "refused" : "lost";
      refusal = error?.message;
      show();
      if (!isRefused) setTimeout(() => watching || reopen(), RETRY_MS);
      // The page may be from another version of the server, whose requests differ.
      if (!error?.status || isRefused || [401, 403, 404].includes(error.status)) reload();
    }).catch(() => {}); // `reload` throws if a reload has not helped
  }

  // Opens the watch if the tab is visible, and closes the one that is open.
  function reopen() {
    const old = watching;
    watching = null;
    old?.close();
    clearTimeout(opening);
    if (!page.stream || document.hidden) return;
    const wait = notBefore - performance.now();
    if (wait > 0) opening = setTimeout(reopen, wait);
    else open();
  }

  // A hidden tab has no watch. If the tab is hidden or paused, a change is fetched later.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden === Boolean(watching)) reopen();
    if (pending) scheduleRefresh();
  });
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
  leavePolls();
  reopen();
}

// The storage of the tab may be disabled or full. Then each page finds out for itself that a proxy buffers streams.
function recall() {
  try {
    const until = Number(sessionStorage.getItem(POLL_UNTIL));
    return until - Date.now() <= SSE_RETRY_MS ? until : 0; // a time further ahead means that the clock was set back
  } catch {
    return 0;
  }
}

function remember(until) {
  try {
    sessionStorage.setItem(POLL_UNTIL, until);
  } catch {}
}

// Splits the URL of a stream, `…/events/schools/7` or `…/events?channel=…&school_id=7`, into a scope and options of the client.
function address(stream) {
  const { pathname, searchParams } = new URL(stream, location.href);
  const [, server, scope] = /^(.*\/)events\/?(.*)$/.exec(pathname);
  const channels = searchParams.getAll("channel");
  searchParams.delete("channel");
  const query = { ...Object.fromEntries(searchParams), tick_ms: TICK_MS };
  // All tabs have the cookie of one visitor.
  return [scope || channels, { server, query, identity: "monitor" }];
}

// Reloads the page, but not in a loop: if the page is unchanged after a reload, another one is useless.
function reload() {
  const last = Number(sessionStorage.getItem("tidings:reload"));
  if (Math.abs(Date.now() - last) < RELOAD_MS) throw new Error("the server no longer gives access to this page");
  sessionStorage.setItem("tidings:reload", Date.now());
  location.reload();
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
