/**
 * Reports the progress of a job. A report never blocks or breaks the work: it returns at once, throws nothing, and is sent in the background.
 *
 * 1. At most one progress report waits; a newer one is folded into it. Starts, ends and changes of metadata are never lost to that.
 * 2. Each report has an idempotency key, so that a retry of a report that did arrive changes nothing.
 * 3. Reports carry their attempt: after a retry of the job, a worker that was given up changes nothing.
 * 4. What cannot be sent in `giveUpMs` is dropped, and `onError` says so.
 */
import { rejection, sleep, TidingsError } from "./error.js";
import { baseUrl, type LinkOptions } from "./link.js";

export interface ReportOptions extends Pick<LinkOptions, "server" | "token" | "fetch"> {
  /** The job's id; the client makes one up if absent. */
  id?: string;
  /** A name for people: `metadata.title`. */
  title?: string;
  message?: string;
  metadata?: Record<string, unknown>;
  /** Names this worker, for fencing: docs/kinds.md. */
  worker?: string;
  /** How long the server may be away, in milliseconds, before a report is dropped. Ten minutes if absent. */
  giveUpMs?: number;
  /** Learns what could not be sent. Nothing is thrown in any case. */
  onError?: (error: Error) => void;
}

export interface Report {
  readonly id: string;
  /** Is aborted when someone asks to cancel the job, or when the job has been taken away from this worker. */
  readonly signal: AbortSignal;
  /** Reports progress from 0 to 100; null: indeterminate. */
  progress(progress: number | null, message?: string, metadata?: Record<string, unknown>): void;
  /** Ends the job. Resolves when the server knows, or to false if it cannot be told. */
  complete(result?: unknown, message?: string): Promise<boolean>;
  fail(error: unknown, code?: string): Promise<boolean>;
  /** Confirms that the work has stopped. */
  cancel(message?: string): Promise<boolean>;
  /** Resolves when everything up to now has been sent or dropped. */
  flush(): Promise<void>;
  /** Passes the items on, and reports how many have been taken. */
  track<T>(items: Iterable<T> | AsyncIterable<T>, total?: number): AsyncGenerator<T, void>;
}

interface Command {
  verb: string;
  body: Record<string, unknown>;
  key: string;
  settle?: (sent: boolean) => void;
}

const GIVE_UP_MS = 600_000;
const PAUSE_MS = 500;
const PAUSE_MAX_MS = 15_000;
const REQUEST_MS = 15_000;
/** The least time between two progress reports. */
const PROGRESS_MS = 100;
const REJECTIONS_MAX = 3;
/** A browser sends up to 64 KiB for a page that is gone, and nothing at all beyond it. */
const KEEPALIVE_MAX_BYTES = 60_000;

/** Starts a job of this type, and returns what reports on it. */
export function report(type: string, options: ReportOptions = {}): Report {
  const id = options.id ?? unique();
  const url = `${baseUrl(options.server)}api/jobs/${encodeURIComponent(id)}/`;
  const stop = new AbortController();
  const never = new AbortController().signal;
  const queue: Command[] = [];
  let attempt: number | undefined;
  let running: Promise<void> | undefined;
  let ended = false;
  let lost = false;

  /** Takes over the attempt of a job that somebody has started already, such as this worker before a restart. */
  const joins = async (headers: Record<string, string>): Promise<boolean> => {
    const answer = await (options.fetch ?? fetch)(`${url.slice(0, -1)}?status_case=lower`, { headers, signal: AbortSignal.timeout(REQUEST_MS) });
    const job = answer.ok ? await answer.json().catch(() => ({})) : {};
    if (job.status === "in_progress") attempt = job.attempt;
    return attempt !== undefined;
  };

  const post = async (command: Command): Promise<boolean> => {
    const deadline = Date.now() + (options.giveUpMs ?? GIVE_UP_MS);
    let pause = PAUSE_MS;
    let rejections = 0;
    for (;;) {
      let failure: Error;
      let wait = pause * (0.5 + Math.random());
      try {
        const token = await options.token?.();
        const headers: Record<string, string> = { "Content-Type": "application/json", "Idempotency-Key": command.key };
        if (token) headers.Authorization = `Bearer ${token}`;
        // The attempt belongs to the request that the key stands for.
        const body = JSON.stringify(command.body);
        const answer = await (options.fetch ?? fetch)(url + command.verb, {
          method: "POST",
          headers,
          body,
          signal: AbortSignal.timeout(REQUEST_MS),
          keepalive: command.settle !== undefined && new TextEncoder().encode(body).length < KEEPALIVE_MAX_BYTES,
        });
        if (answer.ok) {
          const event = await answer.json().catch(() => ({}));
          attempt ??= event.attempt;
          if (event.cancel_requested) stop.abort(new TidingsError("the job should stop", undefined, "cancel_requested"));
          return true;
        }
        const refused = await rejection(answer);
        failure = refused;
        wait = Math.max(wait, refused.retryMs);
        const { status = 0 } = refused;
        if (status === 401 ? ++rejections === REJECTIONS_MAX : status < 500 && status !== 429 && status !== 408) {
          if (status === 409) {
            if (command.verb === "start" && (await joins(headers))) return true;
            // Finished by someone else, or retried: the job is no longer this worker's.
            lost = true;
            stop.abort(refused);
          }
          options.onError?.(refused);
          return false;
        }
      } catch (error) {
        failure = error as Error;
      }
      if (Date.now() + wait > deadline) {
        options.onError?.(failure);
        return false;
      }
      await sleep(wait, never);
      pause = Math.min(pause * 2, PAUSE_MAX_MS);
    }
  };

  const drain = async () => {
    await undefined; // what the application reports in one go is folded
    for (let command = queue.shift(); command; command = queue.shift()) {
      if (attempt !== undefined) command.body.attempt = attempt;
      let sent = false;
      if (!lost) {
        const began = Date.now();
        try {
          sent = await post(command);
        } catch {} // `onError` threw
        if (sent && command.verb === "progress" && queue.length === 0) await sleep(Math.min(PROGRESS_MS, began + PROGRESS_MS - Date.now()), hurry.signal);
      }
      command.settle?.(sent);
    }
    running = undefined;
  };
  let hurry = new AbortController();
  const send = (verb: string, body: Record<string, unknown>, settle?: (sent: boolean) => void) => {
    for (const name in body) if (body[name] === undefined) delete body[name];
    const last = queue.at(-1);
    if (verb === "progress" && last?.verb === "progress") {
      const metadata = { ...(last.body.metadata as object), ...(body.metadata as object) };
      Object.assign(last.body, body, Object.keys(metadata).length ? { metadata } : {});
    } else queue.push({ verb, body: { ...body, worker: options.worker }, key: unique(), ...(settle && { settle }) });
    if (settle) {
      hurry.abort();
      hurry = new AbortController();
    }
    running ??= drain();
  };
  const end = (verb: string, body: Record<string, unknown>) => {
    if (ended) return Promise.resolve(false);
    ended = true;
    return new Promise<boolean>((settle) => send(verb, body, settle));
  };

  const { title, metadata, message } = options;
  send("start", { job_type: type, message, metadata: title === undefined ? metadata : { title, ...metadata } });
  const own: Report = {
    id,
    signal: stop.signal,
    progress(progress, message, metadata) {
      if (!ended) send("progress", { job_type: type, progress: progress === null ? null : Math.min(100, Math.max(0, progress)) || 0, message, metadata });
    },
    complete: (result, message) => end("complete", { result, message }),
    fail: (error, code = "error") => end("fail", { error: { code, message: String((error as Error)?.message ?? error) } }),
    cancel: (message) => end("cancel", { force: true, message }),
    async flush() {
      await running;
    },
    async *track(items, total = Number((items as { length?: number; size?: number }).length ?? (items as { size?: number }).size) || undefined) {
      let taken = 0;
      for await (const item of items) {
        yield item;
        own.progress(total ? (++taken / total) * 100 : null, `${taken}${total ? ` of ${total}` : ""}`);
      }
    },
  };
  return own;
}

/** Returns an id that nobody else makes up. */
function unique(): string {
  return globalThis.crypto?.randomUUID?.() ?? Array.from({ length: 4 }, () => Math.random().toString(36).slice(2, 10)).join("");
}
