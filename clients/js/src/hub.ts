/**
 * One connection for all elements of a page that show single subjects, because browsers open few connections to a server.
 *
 * When the set of channels changes, a watch of the new set takes the old one's place and begins with the present state, which is all
 * that an element shows. A subject that does not exist yet is asked for again from time to time.
 */
import type { TidingsError } from "./error.js";
import type { TidingsEvent } from "./messages.js";
import { type Snapshot, type Watch, type WatchOptions, watch } from "./watch.js";

/** What an element learns: the latest event, and how the connection is. */
export type Listener = (event: TidingsEvent | undefined, status: Snapshot["status"] | "missing") => void;

/** The server accepts so many channels on one connection. */
const CHANNELS_MAX = 100;
const MISSING_MS = 2_000;
const MISSING_MAX_MS = 30_000;

export class Hub {
  readonly #options: (channels: string[]) => WatchOptions;
  readonly #members = new Map<string, Set<Listener>>();
  readonly #missing = new Set<string>();
  #watches: { name: string; channels: string[]; watch: Watch }[] = [];
  #due = false;
  #again: ReturnType<typeof setTimeout> | undefined;
  #pause = MISSING_MS;

  /** `options` returns how to watch these channels. */
  constructor(options: (channels: string[]) => WatchOptions) {
    this.#options = options;
  }

  /** Calls the listener with the present state of the channel, now and after each change. Returns a function that ends this. */
  add(channel: string, listener: Listener): () => void {
    const listeners = this.#members.get(channel) ?? new Set();
    this.#members.set(channel, listeners.add(listener));
    this.#arrange();
    const open = this.#watches.find(({ channels }) => channels.includes(channel));
    if (open) {
      const { subjects, status } = open.watch.getSnapshot();
      listener(subjects.get(channel), status);
    }
    return () => {
      listeners.delete(listener);
      if (!listeners.size && this.#members.get(channel) === listeners) this.#members.delete(channel);
      this.#arrange();
    };
  }

  /** Opens and closes watches as the members need them, once for all changes of the moment. */
  #arrange() {
    if (this.#due) return;
    this.#due = true;
    setTimeout(() => {
      this.#due = false;
      const channels = [...this.#members.keys()].filter((channel) => !this.#missing.has(channel)).sort();
      const wanted: string[][] = [];
      while (channels.length) wanted.push(channels.splice(0, CHANNELS_MAX));
      const old = this.#watches;
      this.#watches = wanted.map((set) => {
        const name = set.join("&");
        return old.find((one) => one.name === name) ?? { name, channels: set, watch: this.#open(set) };
      });
      for (const one of old) if (!this.#watches.includes(one)) one.watch.close();
    });
  }

  #open(channels: string[]): Watch {
    const opened = watch(channels.length === 1 ? (channels[0] as string) : channels, this.#options(channels));
    const seen = new Map<string, TidingsEvent>();
    let status: string | undefined;
    const tell = () => {
      const now = opened.getSnapshot();
      for (const channel of channels) {
        const event = now.subjects.get(channel);
        if (event === seen.get(channel) && now.status === status) continue;
        if (event) seen.set(channel, event);
        for (const listener of this.#members.get(channel) ?? []) listener(event, now.status);
      }
      status = now.status;
    };
    opened.subscribe(tell);
    opened.finished.catch((error: TidingsError) => {
      if (error.status !== 404) return;
      const missing = channels.filter((one) => channels.length === 1 || error.message === `${decodeURIComponent(one)} not found` || error.message === `${one} not found`);
      for (const channel of missing) {
        this.#missing.add(channel);
        for (const listener of this.#members.get(channel) ?? []) listener(undefined, "missing");
      }
      if (!missing.length) return;
      this.#watches = this.#watches.filter((one) => one.watch !== opened);
      this.#arrange();
      this.#again ??= setTimeout(() => {
        this.#again = undefined;
        this.#pause = Math.min(this.#pause * 2, MISSING_MAX_MS);
        this.#missing.clear();
        this.#arrange();
      }, this.#pause);
    });
    return opened;
  }
}
