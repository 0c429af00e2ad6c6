// Listens to Tidings in a browser and stays connected. Copy this module into your own pages.
//
// An EventSource reconnects by itself only as long as its URL keeps working. A ticket in the URL expires, and after any status
// other than 200 an EventSource stops for good. So this loop requests a new ticket each time and resumes from its cursor.

const PAUSE_MS = 1000;
const PAUSE_MAX_MS = 30_000;
// Used until `connected` contains the heartbeat interval.
const TIMEOUT_MS = 30_000;
// Consecutive tokens that may be rejected, because each may have expired on its way.
const REJECTIONS_MAX = 3;

/**
 * Calls `onMessage` with each message, in order, each event once, until `signal` is aborted.
 *
 * @param {object} options
 * @param {string} [options.server] URL of the server; the page's own server if absent
 * @param {string[]} options.channels what to listen to: `jobs`, `jobs/42`, `schools/7`
 * @param {() => string | Promise<string>} options.token returns a valid token, a fresh one when the old one has expired
 * @param {(message: object) => void} options.onMessage also gets `connected`, `ready`, `reset` and `closing`
 * @param {(isConnected: boolean) => void} [options.onState] is called when the connection is lost and when it is restored
 * @param {string} [options.cursor] where to resume; a snapshot comes first if absent
 * @param {AbortSignal} [options.signal]
 * @returns {Promise<string>} the cursor to resume from, once `signal` is aborted. Rejects if the server rejects permanently
 *   (a token without access, a channel that does not exist) or if `token` or `onMessage` throws. The error's `cause` is
 *   what was thrown, and its `cursor` is where to resume.
 */
export async function listen(options) {
  const { server = "", channels, token, onMessage, onState = () => {}, signal } = options;
  let { cursor = "" } = options;
  let pause = PAUSE_MS;
  let rejections = 0;
  while (!signal?.aborted) {
    let wait = 0;
    try {
      const fresh = await call(token);
      const { url } = await request("POST", `${server}/api/tickets`, signal, fresh, { channels });
      // The server may be below a path prefix, which `url` contains as well.
      const streamUrl = new URL(url, new URL(`${server}/api/tickets`, location.href)).href;
      // An EventSource does not report why it was rejected, and would retry a channel that does not exist for ever.
      await request("HEAD", streamUrl, signal);
      wait = await stream(`${streamUrl}&cursor=${encodeURIComponent(cursor)}`, signal, (message, at) => {
        if (message.type === "connected") onState(true);
        if (message.type === "ready") [pause, rejections] = [PAUSE_MS, 0];
        // First the message, then its cursor: if `onMessage` throws, the message is delivered again.
        if (message.type !== "heartbeat") onMessage(message);
        cursor = at || cursor;
      });
    } catch (error) {
      if (signal?.aborted) break;
      rejections = error.status === 401 ? rejections + 1 : 0;
      if (error.isFinal || rejections === REJECTIONS_MAX) throw Object.assign(error, { cursor });
      wait = error.retryMs ?? 0;
    }
    onState(false);
    // Add jitter, so that clients do not all reconnect at the same moment.
    await sleep(Math.max(wait, pause) * (1 + Math.random()), signal);
    pause = Math.min(pause * 2, PAUSE_MAX_MS);
  }
  return cursor;
}

/** Returns the result of a function of the page. An error that it throws is final. */
async function call(own, ...values) {
  try {
    return await own(...values);
  } catch (cause) {
    throw Object.assign(new Error("a function of the page failed", { cause }), { isFinal: true });
  }
}

/** Sends a request and returns the JSON of the response. After a rejection, throws an error that says whether to retry. */
async function request(method, url, signal, token, body) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(url, { method, headers, body: body && JSON.stringify(body), signal });
  const json = await answer.json().catch(() => ({}));
  if (answer.ok) return json;
  throw Object.assign(new Error(json.detail ?? `HTTP ${answer.status}`), {
    status: answer.status,
    // A 401 may mean that the token has just expired; the loop requests a fresh one.
    isFinal: [400, 403, 404, 422].includes(answer.status),
    // A date counts as none: the loop waits nevertheless.
    retryMs: Number(answer.headers.get("Retry-After")) * 1000 || 0,
  });
}

function sleep(ms, signal) {
  return new Promise((done) => {
    const wake = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", wake);
      done();
    };
    const timer = setTimeout(wake, ms);
    signal?.addEventListener("abort", wake);
    if (signal?.aborted) wake();
  });
}

/** Reads one stream to its end. Resolves to the delay that the server requests, in milliseconds. */
function stream(url, signal, onMessage) {
  return new Promise((ended, failed) => {
    const source = new EventSource(url);
    let timeout = TIMEOUT_MS;
    let wait = 0;
    let timer;
    const stop = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      source.close();
    };
    const end = () => {
      stop();
      ended(wait);
    };
    const live = () => {
      clearTimeout(timer);
      timer = setTimeout(end, timeout);
    };
    const receive = ({ data, lastEventId }) => {
      live();
      const message = JSON.parse(data);
      // A dead connection is silent: two missing heartbeats end it.
      if (message.heartbeat_secs) timeout = message.heartbeat_secs * 2000;
      if (message.type === "closing") wait = message.retry_ms;
      try {
        onMessage(message, lastEventId);
      } catch (cause) {
        stop();
        failed(Object.assign(new Error("`onMessage` failed", { cause }), { isFinal: true }));
      }
    };
    source.onmessage = receive;
    source.addEventListener("heartbeat", receive);
    // The built-in reconnection would use an expired ticket.
    source.onerror = end;
    signal?.addEventListener("abort", end);
    live();
    if (signal?.aborted) end();
  });
}
