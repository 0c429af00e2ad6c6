/**
 * Reports the progress of a job. A report never blocks or breaks the work: it returns at once, throws nothing, and is sent in the background.
 *
 * 1. At most one progress report waits; a newer one is folded into it. Starts, ends and changes of metadata are never lost to that.
 * 2. Each report has an idempotency key, so that a retry of a report that did arrive changes nothing.
 * 3. Reports carry their attempt: after a retry of the job, a worker that was given up changes nothing.
 * 4. What cannot be sent in `giveUpMs` is dropped, and `onError` says so.
 * 5. A report is not lost because of its content. Long texts are cut; if JSON or the server does not accept the rest, it is sent without result and metadata.
 */
import { rejection, sleep, TidingsError } from "./error.js";
import { baseUrl, type LinkOptions, NO_SECRET, SECRET_MS } from "./link.js";

export interface ReportOptions extends Pick<LinkOptions, "server" | "token" | "secretMs" | "fetch"> {
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
  /** Learns what could not be sent, or only without its result and metadata. Absent: the console is told. Nothing is thrown in any case. */
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
  metadata: Map<string, unknown>;
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
/** The least time between two warnings. */
const WARNING_MS = 10_000;
/** Statuses of a report whose content is not accepted. */
const CONTENT = [400, 413, 422];
/** So many keys of metadata wait while the server is away; the oldest are dropped. */
const METADATA_MAX = 1000;
/** The server accepts so much. */
const MESSAGE_MAX_BYTES = 4000;
const CODE_MAX_BYTES = 64;
/** A browser sends up to 64 KiB for a page that is gone, and nothing at all beyond it. */
const KEEPALIVE_MAX_BYTES = 60_000;

/** Starts a job of this type, and returns what reports on it. */
export function report(type: string, options: ReportOptions = {}): Report {
  const id = options.id ?? unique();
  let url = "";
  const stop = new AbortController();
  const never = new AbortController().signal;
  const queue: Command[] = [];
  let attempt: number | undefined;
  let running: Promise<void> | undefined;
  let ended = false;
  let lost = false;

  /** Takes over the attempt of a job that somebody has started already, such as this worker before a restart. A job that the server had lost is another worker's then. */
  const joins = async (again: boolean, headers: Record<string, string>, signal: AbortSignal): Promise<boolean> => {
    const answer = await (options.fetch ?? fetch)(`${url.slice(0, -1)}?status_case=lower`, { headers, signal });
    const job = answer.ok ? await answer.json().catch(() => ({})) : {};
    const own = !again || (options.worker !== undefined && job.worker === options.worker);
    if (job.status === "in_progress" && own) attempt = job.attempt;
    return attempt !== undefined;
  };

  let warned = Number.NEGATIVE_INFINITY;
  const warn = (error: Error) => {
    if (Date.now() - warned < WARNING_MS) return;
    warned = Date.now();
    console.warn(`tidings: a report of ${type} ${id} could not be sent as it is: ${error.message}`);
  };
  const tell = (error: Error) => {
    try {
      (options.onError ?? warn)(error);
    } catch {} // not even this breaks the work
  };
  /** Returns what the application's values give; undefined if they throw, as a getter may. */
  const tried = <T>(read: () => T): T | undefined => {
    try {
      return read();
    } catch (error) {
      tell(error as Error);
    }
  };
  try {
    url = `${baseUrl(options.server)}api/jobs/${encodeURIComponent(id)}/`;
  } catch (error) {
    lost = true;
    tell(error as Error);
  }

  /** Returns the metadata with which the job begins. */
  const named = (): Record<string, unknown> => {
    const titled = options.title === undefined ? {} : { title: options.title };
    return tried(() => ({ ...titled, ...options.metadata })) ?? titled;
  };

  /** Returns the request that the key stands for, which is the same at each try. */
  const written = (command: Command): string => {
    const { body, metadata } = command;
    if (metadata.size) body.metadata = Object.fromEntries(metadata);
    if (attempt !== undefined) body.attempt = attempt;
    const text = () => JSON.stringify(body, (_, value) => (typeof value === "bigint" ? String(value) : value));
    try {
      return text();
    } catch (error) {
      tell(error as Error);
      reduce(command);
      return text();
    }
  };

  const begins = (): Command => ({ verb: "start", body: { job_type: type, worker: options.worker }, metadata: new Map(Object.entries(named())), key: unique() });

  const post = async (command: Command, again = false): Promise<boolean> => {
    const deadline = Date.now() + (options.giveUpMs ?? GIVE_UP_MS);
    let body = written(command);
    let pause = PAUSE_MS;
    let rejections = 0;
    let anew = false;
    for (;;) {
      let failure: Error;
      let wait = pause * (0.5 + Math.random());
      // Not `AbortSignal.timeout`, because a Node process does not wait for it. If a proxy closes a new connection at once, `fetch` of Node 20 neither
      // settles nor keeps the process running.
      const late = new AbortController();
      let timer: ReturnType<typeof setTimeout> | undefined;
      try {
        const tokenless = new Promise<never>((_, failed) => {
          timer = setTimeout(() => failed(new Error(NO_SECRET)), options.secretMs ?? SECRET_MS);
        });
        const token = await Promise.race([options.token?.(), tokenless]);
        clearTimeout(timer);
        timer = setTimeout(() => late.abort(new Error("the server does not answer")), REQUEST_MS);
        const headers: Record<string, string> = { "Content-Type": "application/json", "Idempotency-Key": command.key };
        if (token) headers.Authorization = `Bearer ${token}`;
        const answer = await (options.fetch ?? fetch)(url + command.verb, {
          method: "POST",
          headers,
          body,
          signal: late.signal,
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
            if (command.verb === "start" && (await joins(again, headers, late.signal))) return true;
            // Finished by someone else, or retried: the job is no longer this worker's.
            lost = true;
            stop.abort(refused);
          }
          if (status === 404 && command.verb !== "start" && !anew) {
            // The server has lost the job, and gets another one of the same id.
            anew = true;
            attempt = undefined;
            delete command.body.attempt;
            if (await post(begins(), true)) {
              body = written(command);
              continue;
            }
          }
          tell(refused);
          if (!CONTENT.includes(status) || !reduce(command)) return false;
          body = written(command);
          continue;
        }
      } catch (error) {
        failure = error as Error;
      } finally {
        clearTimeout(timer);
      }
      if (Date.now() + wait > deadline) {
        tell(failure);
        return false;
      }
      await sleep(wait, never);
      pause = Math.min(pause * 2, PAUSE_MAX_MS);
    }
  };

  const drain = async () => {
    await undefined; // what the application reports in one go is folded
    for (let command = queue.shift(); command; command = queue.shift()) {
      let sent = false;
      if (!lost) {
        const began = Date.now();
        sent = await post(command).catch((error) => {
          tell(error); // such as a type that is no text
          return false;
        });
        if (sent && command.verb === "progress" && queue.length === 0) await sleep(Math.min(PROGRESS_MS, began + PROGRESS_MS - Date.now()), hurry.signal);
      }
      command.settle?.(sent);
    }
    running = undefined;
  };
  let hurry = new AbortController();
  const send = (verb: string, { metadata: added, message, ...fields }: Record<string, unknown>, settle?: (sent: boolean) => void) => {
    const body: Record<string, unknown> = { ...fields, message: message == null ? undefined : cut(message, MESSAGE_MAX_BYTES) };
    for (const name in body) if (body[name] === undefined) delete body[name];
    let last = queue.at(-1);
    if (verb === "progress" && last?.verb === "progress") Object.assign(last.body, body);
    else {
      last = { verb, body: { ...body, worker: options.worker }, metadata: new Map(), key: unique(), ...(settle && { settle }) };
      queue.push(last);
    }
    const { metadata } = last;
    for (const [name, value] of tried(() => Object.entries(added ?? {})) ?? []) {
      metadata.delete(name);
      metadata.set(name, value);
      if (metadata.size > METADATA_MAX) metadata.delete(metadata.keys().next().value as string);
    }
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

  send("start", { job_type: type, message: options.message, metadata: named() });
  const own: Report = {
    id,
    signal: stop.signal,
    progress(progress, message, metadata) {
      const percent = tried(() => (progress === null ? null : Math.min(100, Math.max(0, Number(progress))) || 0));
      if (!ended) send("progress", { job_type: type, progress: percent, message, metadata });
    },
    complete: (result, message) => end("complete", { result, message }),
    fail: (error, code = "error") => {
      const { message, name } = tried(() => ({ message: (error as Error)?.message, name: (error as Error)?.name })) ?? {};
      return end("fail", { error: { code: cut(code, CODE_MAX_BYTES), message: cut(message ?? error, MESSAGE_MAX_BYTES) || cut(name ?? code, MESSAGE_MAX_BYTES) } });
    },
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

/** Removes what may be the reason why a report is not accepted. Returns whether there was anything. */
function reduce(command: Command): boolean {
  const { body, metadata } = command;
  const had = metadata.size > 0 || "result" in body;
  delete body.result;
  delete body.metadata;
  metadata.clear();
  command.key = unique(); // it is another request
  return had;
}

/** Returns the text of a value, in at most so many bytes. */
function cut(value: unknown, most: number): string {
  let text: string;
  try {
    text = String(value);
  } catch {
    text = typeof value; // an object without a text
  }
  const bytes = new TextEncoder().encode(text);
  const ellipsis = "…";
  // A character that is cut in two is left out.
  return bytes.length <= most ? text : new TextDecoder().decode(bytes.slice(0, most - 3), { stream: true }) + ellipsis;
}

/** Returns an id that nobody else makes up. */
function unique(): string {
  return globalThis.crypto?.randomUUID?.() ?? Array.from({ length: 4 }, () => Math.random().toString(36).slice(2, 10)).join("");
}
