// Listens to Tidings in a browser and stays connected: a module to copy into your own pages.
//
// An EventSource reconnects by itself only as long as its URL keeps working. A ticket in it expires, and at any status
// other than 200 an EventSource ends for good. So this loop asks for a new ticket each time and goes on at its cursor.

const PAUSE_MS = 1000;
const PAUSE_MAX_MS = 30_000;
// Until `connected` says how often a heartbeat comes.
const PATIENCE_MS = 30_000;

/**
 * Calls `onMessage` with each message, in order, each event once, until `signal` is aborted.
 *
 * @param {object} options
 * @param {string} [options.server] where Tidings is; the page's own server if absent
 * @param {string[]} options.channels what to listen to: `jobs`, `jobs/42`, `schools/7`
 * @param {() => string | Promise<string>} options.token gives a valid token, a fresh one when the old one has expired
 * @param {(message: object) => void} options.onMessage also gets `connected`, `ready`, `reset` and `closing`
 * @param {(isConnected: boolean) => void} [options.onState] is told when the connection is lost and when it is back
 * @param {string} [options.cursor] where to go on; a snapshot comes first if absent
 * @param {AbortSignal} [options.signal]
 * @returns {Promise<string>} the cursor at which it ended. Rejects if the token is not allowed to listen.
 */
export async function listen(options) {
  const { server = "", channels, token, onMessage, onState = () => {}, signal } = options;
  let { cursor = "" } = options;
  let pause = PAUSE_MS;
  while (!signal?.aborted) {
    try {
      const path = await ticketPath(server, channels, await token(), signal);
      const url = `${server}${path}&cursor=${encodeURIComponent(cursor)}`;
      const wait = await stream(url, signal, (message, at) => {
        // First the message, then its cursor: an error in `onMessage` must not lose it.
        if (message.type !== "heartbeat") onMessage(message);
        cursor = at || cursor;
        if (message.type === "connected") onState(true);
        if (message.type === "ready") pause = PAUSE_MS;
      });
      pause = Math.max(pause, wait);
    } catch (error) {
      if (error.isFinal || signal?.aborted) throw error;
    }
    onState(false);
    // Each client its own time: they do not all come back in the same moment.
    await new Promise((done) => setTimeout(done, pause * (0.5 + Math.random())));
    pause = Math.min(pause * 2, PAUSE_MAX_MS);
  }
  return cursor;
}

async function ticketPath(server, channels, token, signal) {
  const answer = await fetch(`${server}/api/tickets`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ channels }),
    signal,
  });
  const { url, detail } = await answer.json();
  if (answer.ok) return url;
  // 401 may be a token that has just expired: the next one is asked for. What is not allowed stays so.
  throw Object.assign(new Error(detail), { isFinal: [403, 404, 422].includes(answer.status) });
}

/** Reads one stream to its end, and gives how long the server wants to be left alone, in milliseconds. */
function stream(url, signal, onMessage) {
  return new Promise((ended, failed) => {
    const source = new EventSource(url);
    let patience = PATIENCE_MS;
    let wait = 0;
    let timer;
    const end = (finish, value) => {
      clearTimeout(timer);
      source.close();
      finish(value);
    };
    const live = () => {
      clearTimeout(timer);
      timer = setTimeout(() => end(ended, wait), patience);
    };
    const hear = ({ data, lastEventId }) => {
      live();
      const message = JSON.parse(data);
      // A dead link says nothing: two heartbeats that do not come end it.
      if (message.heartbeat_secs) patience = message.heartbeat_secs * 2000;
      if (message.type === "closing") wait = message.retry_ms;
      try {
        onMessage(message, lastEventId);
      } catch (error) {
        end(failed, Object.assign(error, { isFinal: true }));
      }
    };
    source.onmessage = hear;
    source.addEventListener("heartbeat", hear);
    // Its own reconnection would come back with an expired ticket.
    source.onerror = () => end(ended, wait);
    signal?.addEventListener("abort", () => end(ended, wait));
    live();
  });
}
