/**
 * Watches a scope: the whole story, once, in order, over any transport, across cuts, reloads and tabs.
 */
import { sleep, type TidingsError } from "./error.js";
import { type LinkOptions, link, type Reader, SECRET_MS, scopeUrl, type Transport } from "./link.js";
import type { Message, Reset, Tiding, TidingsEvent } from "./messages.js";
import { type Chapter, placeOf, Story } from "./story.js";
import { together } from "./tabs.js";

export interface WatchOptions extends LinkOptions {
  /** Is called with each event, `ready` and `reset`, in order. */
  onTiding?: ((tiding: Tiding) => void) | undefined;
  /** Where to resume, for an application that keeps the cursor itself. The watch then stores nothing, and shares only if it has an `identity`. */
  cursor?: string | undefined;
  /** Ends the watch. */
  signal?: AbortSignal | undefined;
  /**
   * Names the user. Tabs share a connection, and pages a stored state, only for the same user. Absent: the claims of the token or ticket. With cookies,
   * which a script cannot read, nothing is shared or stored unless it is given.
   */
  identity?: string | undefined;
  /** Whether tabs of the same scope and user share one connection. True if absent. */
  share?: boolean | undefined;
  /** Whether a reloaded page continues where it was. True if absent. */
  persist?: boolean | undefined;
  /**
   * Whether the watch keeps the latest event of each subject. True if absent. False is for a page that is open for weeks and needs only to learn that
   * something happens: `subjects` stays empty.
   */
  subjects?: boolean | undefined;
}

/** The present state of a watch. Never changes; a new one takes its place. */
export interface Snapshot {
  /** `connecting` until the state is complete, `offline` while the connection is lost. `ended` and `failed` are final. */
  readonly status: "connecting" | "live" | "offline" | "ended" | "failed";
  /** Whether `subjects` is complete. */
  readonly ready: boolean;
  /** The latest event of each part of each subject, in the order of the log: `jobs/42`, `devices/7`, `devices/7#info`, … */
  readonly subjects: ReadonlyMap<string, TidingsEvent>;
  /** Where to resume. */
  readonly cursor: string;
  readonly transport: Transport | undefined;
  /** Why the watch is offline or has failed. If the connection was not cut but closed, it is a `TidingsError` with the `code` of the close. */
  readonly error: Error | undefined;
}

export interface Watch extends AsyncIterable<Tiding, void> {
  /** Calls `listener` after each change of the snapshot. Returns a function that ends this. */
  subscribe(listener: () => void): () => void;
  /** Returns the present state: the same object until something changes. */
  getSnapshot(): Snapshot;
  /** Resolves when the watch has ended, and rejects with a `TidingsError` if it has failed. */
  readonly finished: Promise<void>;
  /** Ends the watch. */
  close(): void;
}

/** The most messages that wait for a slow iterator. Beyond it, it gets a `reset` and the present state instead. */
const QUEUE_MAX = 10_000;
/** The longest story that is stored for the next page, in characters. */
const STORED_MAX = 1_000_000;
/** What tells two tokens of one user apart. */
const CHANGING_CLAIMS = ["exp", "iat", "nbf", "jti", "session_exp"];

/**
 * Watches a scope, such as `"jobs"`, `"jobs/42"` or `["jobs/42", "devices"]`.
 *
 * Starts at once. The watch is an async iterator, a store (`subscribe`, `getSnapshot`), and calls `onTiding`; use any of them.
 */
export function watch(scope: string | readonly string[], options: WatchOptions = {}): Watch {
  const url = scopeUrl(scope, options);
  const { onTiding, signal, cursor, subjects } = options;
  const story = new Story(subjects);
  const stop = new AbortController();
  const queues = new Set<(tiding?: Tiding) => void>();
  const listeners = new Set<() => void>();
  let final: "ended" | "failed" | undefined;
  let transport: Transport | undefined;
  let error: Error | undefined;
  let snapshot: Snapshot | undefined;
  let notified = false;

  const changed = () => {
    snapshot = undefined;
    if (notified) return;
    notified = true;
    queueMicrotask(() => {
      notified = false;
      for (const listener of listeners) guard(listener);
    });
  };
  const deliver = (tiding: Tiding) => {
    if (onTiding) guard(() => onTiding(tiding));
    for (const push of queues) push(tiding);
    changed();
  };
  const take = (message: Message) => {
    const tiding = story.take(message);
    if (tiding) deliver(tiding);
  };
  const meet = (chapter: Chapter) => story.continue(chapter).forEach(deliver);
  const tell = (by?: Transport, why?: Error) => {
    transport = by;
    error = why;
    changed();
  };

  const run = async () => {
    await undefined; // what the application does with the watch first comes first
    let secret: string | null | undefined;
    /** The first connection uses the secret that tells who the user is. */
    const first = (kind: "token" | "ticket") =>
      options[kind] && (async () => {
        const known = secret;
        secret = undefined;
        return known ?? options[kind]?.();
      });
    const secrets = { ...options, token: first("token"), ticket: first("ticket") };
    const play = (reader: Reader, until: AbortSignal) => link(url, secrets, reader, until);
    story.cursor = cursor ?? "";
    if (cursor === undefined || options.identity !== undefined) {
      const share = options.share !== false && globalThis.navigator?.locks && globalThis.BroadcastChannel && globalThis.location;
      const persist = cursor === undefined && options.persist !== false && session();
      let who = options.identity;
      if (who === undefined && (share || persist)) {
        try {
          secret = (await Promise.race([(options.token ?? options.ticket)?.(), sleep(options.secretMs ?? SECRET_MS, stop.signal)])) as typeof secret;
          who = claims(secret);
        } catch {}
      }
      if (who !== undefined) {
        // Tabs that keep no state have none for the others.
        const name = `tidings:${url}:${who}${subjects === false ? "#" : ""}`;
        if (persist) {
          const stored = persist.getItem(name);
          persist.removeItem(name);
          try {
            if (stored) meet(JSON.parse(stored));
          } catch {} // not what this version stores
          const save = () => {
            const text = story.cursor ? JSON.stringify(story.tell()) : "";
            try {
              if (text && text.length <= STORED_MAX) persist.setItem(name, text);
            } catch {}
          };
          globalThis.addEventListener("pagehide", save, { signal: stop.signal });
        }
        if (share) {
          // Else the leader would take this tab for one that lacks everything.
          story.seq = placeOf(story.cursor).seq || story.seq;
          try {
            return await together(name, { story, take, meet, tell, play }, stop.signal);
          } catch (error) {
            // A page whose origin is no other's, such as a sandboxed frame, may not share.
            if ((error as Error).name !== "SecurityError") throw error;
          }
        }
      }
    }
    return play({ cursor: () => story.cursor, take, tell }, stop.signal);
  };
  const end = () => stop.abort();
  signal?.addEventListener("abort", end);
  if (signal?.aborted) end();
  const over = (why?: Error) => {
    end();
    signal?.removeEventListener("abort", end);
    final = why ? "failed" : "ended";
    error = why;
    transport = undefined;
    changed();
    for (const push of queues) push();
    if (why) throw why;
  };
  const finished = run().then(() => over(), over);
  finished.catch(() => {}); // whoever awaits it learns of it; nobody has to

  return {
    finished,
    close: end,
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    getSnapshot() {
      const { ready, cursor, state } = story;
      const status = final ?? (!ready ? "connecting" : transport ? "live" : "offline");
      snapshot ??= { status, ready, subjects: new Map(state), cursor, transport, error };
      return snapshot;
    },
    async *[Symbol.asyncIterator]() {
      let waiting: Tiding[] = story.retell();
      let wake = () => {};
      const push = (tiding?: Tiding) => {
        if (tiding) waiting.push(tiding);
        if (waiting.length > QUEUE_MAX + story.state.size) {
          const reset: Reset = { type: "reset", reason: "too_far_behind" };
          waiting = [reset, ...story.retell()];
        }
        wake();
      };
      queues.add(push);
      try {
        for (;;) {
          const batch = waiting;
          waiting = [];
          yield* batch;
          if (waiting.length) continue;
          if (final === "ended") return;
          if (final) throw error as TidingsError;
          await new Promise<void>((next) => {
            wake = next;
          });
        }
      } finally {
        queues.delete(push);
      }
    },
  };
}

/** Calls a function of the application. What it throws is reported, and does not end the watch. */
function guard(own: () => void) {
  try {
    own();
  } catch (thrown) {
    queueMicrotask(() => {
      throw thrown;
    });
  }
}

/** Returns who a token or ticket is for; undefined if it does not say. */
function claims(secret: string | null | undefined): string | undefined {
  if (!secret) return undefined;
  const own = JSON.parse(atob((secret.split(".")[1] ?? "").replace(/-/g, "+").replace(/_/g, "/")));
  for (const name of CHANGING_CLAIMS) delete own[name];
  return JSON.stringify(own);
}

/** Returns the storage of this tab, if it may be used. */
function session(): Storage | undefined {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}
