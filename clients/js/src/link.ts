/**
 * Keeps one connection to a scope, over whichever transport the network permits, and hands on its messages as they come.
 *
 * 1. SSE first, else WebSocket, else long poll. A transport is *blocked* if it brings no first message in time, falls silent, or
 *    breaks twice before its first message, while an ordinary request to the same URL is answered: then a proxy holds it back. A server that is
 *    down blocks nothing.
 * 2. A blocked transport is remembered for half an hour, across reloads, and forgotten when the network changes.
 * 3. Each connection gets a fresh token, and starts at the cursor that the reader has then.
 * 4. An application that returns no token in time is asked again later.
 * 5. A connection that is silent for two heartbeats is dead.
 *
 * Absent: what messages mean, beyond those that concern the connection itself.
 */
import { rejection, sleep, TidingsError } from "./error.js";
import type { Message } from "./messages.js";
import { parser } from "./sse.js";

export type Transport = "sse" | "websocket" | "poll";

/** Returns a secret, a fresh one if the last one has expired. If it fails, it is called again later. */
export type Secret = () => string | null | undefined | Promise<string | null | undefined>;

export interface LinkOptions {
  /** URL of the server, below which `events/` is; the page's own server if absent. */
  server?: string | URL | undefined;
  /** Returns a token. Called for each connection. */
  token?: Secret | undefined;
  /** Returns a ticket for the scope, in place of a token. Called for each connection. */
  ticket?: Secret | undefined;
  /**
   * Parameters of the stream in addition to those of the scope, such as `job_type`, `status` or `tick_ms`: docs/streams.md. Statuses come in lower case, as `JobStatus` names them,
   * unless `status_case` is `upper`.
   */
  query?: Record<string, string | number | readonly (string | number)[] | undefined> | undefined;
  /** The transports to use, in order of preference. */
  transports?: readonly Transport[] | undefined;
  /** How long `token` and `ticket` may take, in milliseconds. Then the watch is offline, and calls them again later. Half a minute if absent. */
  secretMs?: number | undefined;
  /** How long a transport that the network blocks is not tried again, in milliseconds. Half an hour if absent. */
  blockedMs?: number | undefined;
  /**
   * The least time from the start of one long poll to the start of the next, in milliseconds. 100 if absent. What happens meanwhile comes with the next
   * one: it is late by at most this time, and nothing is lost.
   */
  pollGapMs?: number | undefined;
  /** Used in place of the global `fetch`. */
  fetch?: typeof fetch | undefined;
  /** Used in place of the global `WebSocket`, which Node has since version 22. */
  WebSocket?: (new (url: string, protocols: string[]) => WebSocket) | undefined;
}

export interface Reader {
  /** Returns where the next connection starts. */
  cursor(): string;
  /** Takes a message. */
  take(message: Message): void;
  /** Learns that the connection is up, or is down and why. */
  tell(transport?: Transport, error?: Error): void;
  /** Set by the link: ends the current connection and starts the next one at once. */
  restart?: () => void;
}

/** How long the application may take to return a token or a ticket. */
export const SECRET_MS = 30_000;
export const NO_SECRET = "the application returns no token or ticket";
/** Within this time, a connection must bring its first message. */
const FIRST_MESSAGE_MS = 4000;
const BLOCKED_MS = 1_800_000;
/** So many connections in a row must break before their first message. One that is silent is enough. */
const STRIKES = 2;
const PAUSE_MS = 1000;
const PAUSE_MAX_MS = 30_000;
/** How long a poll waits for a message; and how long it may take. */
const POLL_SECS = 20;
const POLL_MAX_MS = 30_000;
const POLL_GAP_MS = 100;
/** How many tokens in a row may be rejected. Each may have expired on its way. */
const REJECTIONS_MAX = 3;
/** A connection that the server closes sooner than this, twice in a row, is not replaced at once. */
const SHORT_MS = 1000;
/** A timer that is so late says nothing about the connection. */
const LATE_MS = 500;
const ENDED = "the connection has ended";
/** The code of a connection that ends without a reason, as RFC 6455 has it. */
const NO_CODE = 1005;
/** What a retry does not change. */
const FINAL = [400, 403, 404, 422];
/** Closes after which a client may return, but not with a token that has expired by then: a fresh one helps. */
const RENEWED = [1001, 1002, 1007, 1011, 1013, 4401, 4408];

/** Returns the server's URL, with a slash at the end. */
export function baseUrl(server: string | URL = "/"): URL {
  const url = new URL(server, globalThis.location?.href);
  // The scheme of `localhost:8000` is `localhost`.
  if (!url.host) throw new TypeError(`not a server: ${url}`);
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

/** Returns the URL of a scope's stream. */
export function scopeUrl(scope: string | readonly string[], { server, query }: LinkOptions): URL {
  const isOne = typeof scope === "string";
  const url = new URL(`events${isOne ? `/${scope}` : ""}`, baseUrl(server));
  const append = (name: string, values: unknown) => {
    for (const value of [values].flat()) if (value != null) url.searchParams.append(name, String(value));
  };
  if (!isOne) append("channel", scope);
  for (const name in query) append(name, query[name]);
  if (!url.searchParams.has("status_case")) append("status_case", "lower");
  return url;
}

/** Calls `take` with each message of the scope until the signal is aborted or the server is done. Throws if it gives up. */
export async function link(scope: URL, options: LinkOptions, reader: Reader, signal: AbortSignal): Promise<void> {
  const Socket = options.WebSocket ?? globalThis.WebSocket;
  const order = (options.transports ?? (["sse", "websocket", "poll"] as const)).filter((one) => Socket || one !== "websocket");
  const shelf = `tidings:blocked:${scope.origin}`;
  let blocked: { [transport in Transport]?: number } = recall(shelf);
  let pause = PAUSE_MS;
  let rejections = 0;
  let strikes = 0;
  let hasty = false;
  let polling = false;
  let napping = new AbortController();
  const online = () => {
    // Another network may permit what the last one did not.
    blocked = {};
    remember(shelf, blocked);
    pause = PAUSE_MS;
    napping.abort();
  };
  globalThis.addEventListener?.("online", online, { signal });
  signal.addEventListener("abort", () => napping.abort());

  while (!signal.aborted) {
    const transport = order.find((one) => !((blocked[one] ?? 0) > Date.now())) ?? (order.at(-1) as Transport);
    const started = Date.now();
    const stop = new AbortController();
    const abort = () => stop.abort();
    let asked = false;
    let heard = false;
    let silent = false;
    let again = false;
    let slept = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    // The first poll waits for nothing, and shows that the connection works.
    const patient = transport === "poll" && polling;
    let limit = options.secretMs ?? SECRET_MS;
    let closing: Message | undefined;
    let said = "";
    let failure: unknown;
    const alive = (late = false) => {
      slept = late;
      clearTimeout(timer);
      const ms = late ? LATE_MS : limit;
      const due = Date.now() + ms;
      timer = setTimeout(() => {
        // Late: the process or the machine was asleep. What waits in the socket is heard first.
        if (Date.now() > due + LATE_MS) return alive(true);
        silent = true;
        abort();
      }, ms);
    };
    const take = (message: Message) => {
      if (stop.signal.aborted) return;
      // What cannot be read may have been an event. To go on behind it would be a silent gap.
      if (typeof message?.type !== "string") throw new Error("a message cannot be read");
      heard = true;
      strikes = 0;
      const { type } = message;
      if (type === "connected") limit = Number(message.heartbeat_secs) * 2000 || POLL_MAX_MS;
      if (type === "error") said = String(message.message);
      if (type === "closing") {
        closing = message;
        abort();
      }
      if (type === "ready" || message.seq) {
        pause = PAUSE_MS;
        rejections = 0;
      }
      alive();
      reader.take(message);
      if (type === "ready") reader.tell(transport);
    };
    reader.restart = () => {
      again = true;
      abort();
      napping.abort();
    };
    signal.addEventListener("abort", abort, { signal: stop.signal });
    const url = new URL(scope);
    const headers: Record<string, string> = {};
    const ask = (method: string, accept: string, until: AbortSignal) =>
      (options.fetch ?? fetch)(url, { method, headers: { ...headers, Accept: accept }, signal: until, cache: "no-store" });
    /** Reads a response to its end. */
    const read = async (accept: string, text: (piece: string) => void) => {
      const response = await ask("GET", accept, stop.signal);
      if (!response.ok) throw await rejection(response);
      if (!response.headers.get("Content-Type")?.startsWith(accept)) throw new Error(`the response is not ${accept}`);
      const decoder = new TextDecoder();
      const body = (response.body as ReadableStream<Uint8Array>).getReader();
      // Not every `fetch` ends what is under way when it is aborted.
      stop.signal.addEventListener("abort", () => body.cancel().catch(() => {}));
      for (;;) {
        const { done, value } = await body.read();
        if (done || stop.signal.aborted) return;
        alive();
        text(decoder.decode(value, { stream: true }));
      }
    };
    const listen = () =>
      read(
        "text/event-stream",
        parser((data) => take(JSON.parse(data))),
      );
    const poll = async () => {
      url.searchParams.set("wait", String(patient ? POLL_SECS : 0));
      let answer = "";
      await read("application/json", (piece) => {
        answer += piece;
      });
      for (const message of JSON.parse(answer).messages) take(message);
    };
    const converse = (token: string | null | undefined) =>
      new Promise<void>((done, failed) => {
        const address = new URL(url);
        address.protocol = url.protocol.replace("http", "ws");
        address.searchParams.set("heartbeat", "message");
        const socket = new (Socket as typeof WebSocket)(address.href, token ? [`bearer.${token}`] : []);
        stop.signal.addEventListener("abort", () => socket.close());
        socket.onmessage = ({ data }) => {
          try {
            take(JSON.parse(data));
          } catch (error) {
            failed(error);
            abort(); // at once: the next message may be here already
          }
        };
        socket.onerror = socket.onclose = () => done();
      });
    const gone = sleep(Number.POSITIVE_INFINITY, stop.signal);
    const connect = async () => {
      alive();
      const token = await options.token?.();
      const ticket = await options.ticket?.();
      if (stop.signal.aborted) return;
      if (token) headers.Authorization = `Bearer ${token}`;
      if (ticket) url.searchParams.set("ticket", ticket);
      const cursor = reader.cursor();
      // Not `cursor`: a foreign cursor is then answered with a reset, not rejected.
      if (cursor) url.searchParams.set("lastEventId", cursor);
      asked = true;
      limit = patient ? POLL_MAX_MS : FIRST_MESSAGE_MS;
      alive();
      await (transport === "websocket" ? converse(token) : transport === "sse" ? listen() : poll());
    };
    try {
      await Promise.race([gone, connect()]);
      if (transport !== "poll" || !heard) failure = heard ? new TidingsError(ENDED, undefined, NO_CODE) : new Error(ENDED);
    } catch (error) {
      failure = error;
    }
    clearTimeout(timer);
    abort();
    if (signal.aborted) return;
    if (again) continue;
    if (silent) failure = new Error(asked ? "the connection is silent" : NO_SECRET);
    polling = !failure && !closing;

    let wait = 0;
    let retreat = true;
    if (closing) {
      const { code, reason, reconnect, retry_ms } = closing as { code?: number; reason?: string; reconnect?: boolean; retry_ms?: number };
      if (!reconnect && !RENEWED.includes(code as number)) {
        if (code === 1000) return;
        throw new TidingsError(said || reason || "the server has closed the stream", undefined, code);
      }
      wait = Number(retry_ms) || 0;
      failure = new TidingsError(reason ?? "", undefined, code, wait);
      const short = Date.now() - started < SHORT_MS;
      retreat = short && hasty;
      hasty = short;
    } else if (failure) {
      if (asked && (!heard || silent) && !(failure instanceof TidingsError)) {
        reader.tell(undefined, failure as Error);
        // Is it the transport or the server? An ordinary request to the same URL tells; another one has the reason for a rejection.
        napping = new AbortController();
        const over = napping;
        const test = async (method: string): Promise<true | TidingsError> => {
          const answer = await ask(method, "application/json", over.signal);
          return answer.ok || (method === "HEAD" ? test("GET") : rejection(answer));
        };
        const answer = await Promise.race([test("HEAD").catch(() => undefined), sleep(FIRST_MESSAGE_MS, over.signal)]);
        over.abort();
        if (signal.aborted) return;
        // The token may have expired while nothing came.
        if (answer === true || (silent && answer?.status === 401)) {
          // One cut may be chance, and who was asleep has not heard whether it was silent. The last resort is never blocked.
          strikes += silent && !slept ? STRIKES : 1;
          if (strikes >= STRIKES && transport !== order.at(-1)) {
            blocked[transport] = Date.now() + (options.blockedMs ?? BLOCKED_MS);
            remember(shelf, blocked);
            strikes = 0;
            retreat = false;
          }
        } else if (answer) {
          failure = answer;
          // So late, it says only that the token has expired meanwhile.
          if (answer.status === 401 && Date.now() - started > SHORT_MS) rejections = 0;
        }
      }
      if (failure instanceof TidingsError) {
        const { status = 0 } = failure;
        if (FINAL.includes(status) || (status === 401 && ++rejections === REJECTIONS_MAX)) throw failure;
        wait = failure.retryMs;
        retreat = status !== 401 || rejections > 1;
      }
    } else {
      const gap = options.pollGapMs ?? POLL_GAP_MS;
      // Not longer, even if the clock was set back.
      wait = Math.min(gap, started + gap - Date.now());
      retreat = false;
    }
    napping = new AbortController();
    if (failure) reader.tell(undefined, failure as Error);
    // Nothing cuts the server's own wish short.
    await sleep(wait, signal);
    if (retreat) {
      // Add jitter, so that clients do not all reconnect at the same moment.
      await sleep(pause * (0.5 + Math.random()) - wait, napping.signal);
      pause = Math.min(pause * 2, PAUSE_MAX_MS);
    }
  }
}

// Storage may be absent, full or forbidden. Then nothing is remembered.

function recall(shelf: string) {
  try {
    return JSON.parse(localStorage.getItem(shelf) as string) ?? {};
  } catch {
    return {};
  }
}

function remember(shelf: string, value: unknown) {
  try {
    localStorage.setItem(shelf, JSON.stringify(value));
  } catch {}
}
