/**
 * One connection for all tabs of the same scope and user.
 *
 * 1. The tab that holds the Web Lock leads: it has the connection, and hands each message on over a BroadcastChannel. When
 *    it closes, hangs or is put aside by the browser, another one takes over, from its own cursor.
 * 2. Each tab has a story of its own, which drops repetitions. A message says which event was before it; a tab that lacks that event asks
 *    the leader to resume from the tab's cursor. So no tab misses anything or gets anything twice.
 * 3. A tab that knows nothing yet gets the leader's present state. One that begins at a cursor gets what it lacks, or learns that it lacks nothing.
 */
import { TidingsError } from "./error.js";
import type { Reader, Transport } from "./link.js";
import type { Message } from "./messages.js";
import { type Chapter, placeOf, type Story } from "./story.js";

export interface Tab {
  story: Story;
  /** Takes a message of the connection. */
  take(message: Message): void;
  /** Continues the story of another tab. */
  meet(chapter: Chapter): void;
  tell(transport?: Transport, error?: Error): void;
  /** Runs the connection until the signal is aborted or it gives up. */
  play(reader: Reader, signal: AbortSignal): Promise<void>;
}

type Place = Pick<Chapter, "cursor" | "seq">;
interface Note {
  /** A tab asks for what it lacks behind this place. */
  hi?: Place;
  /** A tab has begun to lead. */
  lead?: true;
  /** The state, for tabs that know nothing. */
  all?: Chapter;
  /** A message, and the `seq` before it. */
  m?: Message;
  p?: number;
  /** The connection is up, by this transport, or down (null). */
  up?: Transport | null;
  /** The state is complete for a tab that has everything up to this `seq`. */
  r?: number | undefined;
  why?: string | undefined;
  code?: string | number | undefined;
  /** How long the server asks to wait. */
  wait?: number | undefined;
}

const CHECK_MS = 10_000;
/** After so many checks without a word of the leader, a tab asks for one; and after so many, it takes the lead by force. */
const SILENT_CHECKS = 3;
const HUNG_CHECKS = 5;

/** Runs the tab until the signal is aborted or the connection gives up. */
export function together(name: string, tab: Tab, signal: AbortSignal): Promise<void> {
  const { story } = tab;
  const channel = new BroadcastChannel(name);
  const post = (note: Note) => channel.postMessage(note);
  const place = (): Place => ({ cursor: story.cursor, seq: story.seq });
  const ask = () => {
    asking = true;
    post({ hi: place() });
  };
  let leads = false;
  let asking = false;
  let checks = 0;
  let before = 0; // the `seq` of the event before the next one of the connection
  let straggler: Place | undefined;
  let up: Transport | undefined;
  let leave = () => {};

  const reader: Reader = {
    cursor() {
      const from = straggler ?? place();
      straggler = undefined;
      before = from.seq;
      return from.cursor;
    },
    take(message) {
      post({ m: message, p: before });
      before = message.type === "reset" ? 0 : (message.seq ?? before);
      tab.take(message);
    },
    tell(transport, error) {
      up = transport;
      const why = error as TidingsError | undefined;
      post({ up: up ?? null, why: why?.message, code: why?.code, wait: why?.retryMs });
      tab.tell(transport, error);
    },
  };

  channel.onmessage = ({ data }: MessageEvent<Note>) => {
    checks = 0;
    if (leads) {
      const { hi } = data;
      if (!hi) return;
      if (!hi.cursor) post({ all: story.tell() });
      else if (story.cursor && placeOf(hi.cursor).epoch !== placeOf(story.cursor).epoch) {
        // One of the two was away while the log was replaced. Nobody knows which, so all begin anew.
        reader.take({ type: "reset", reason: "unknown_epoch" });
        reader.restart?.();
      } else if (hi.seq < story.seq && !(hi.seq > (straggler?.seq ?? hi.seq))) {
        straggler = hi;
        reader.restart?.();
      }
      post({ up: up ?? null, r: story.ready ? story.seq : undefined });
    } else if (data.lead) ask();
    else if (data.all) {
      if (!story.cursor) tab.meet(data.all);
      asking = false;
    } else if (data.m) {
      const lacks = (data.p as number) > story.seq || !story.cursor;
      if (!lacks || data.m.type === "reset") {
        asking = false;
        tab.take(data.m);
      } else if (!asking) ask();
    } else if (data.up !== undefined) {
      if (!story.ready && story.cursor && story.seq >= (data.r as number)) tab.take({ type: "ready", cursor: story.cursor });
      tab.tell(data.up ?? undefined, data.why === undefined ? undefined : new TidingsError(data.why, undefined, data.code, data.wait));
    }
  };

  return new Promise<void>((done, failed) => {
    const enter = (steal = false) => {
      const turn = new AbortController();
      leave = () => {
        leads = false;
        turn.abort();
      };
      navigator.locks
        .request(name, steal ? { steal } : { signal: turn.signal }, async () => {
          if (turn.signal.aborted) return;
          leads = true;
          up = undefined;
          post({ lead: true });
          await tab.play(reader, turn.signal);
        })
        .then(
          () => turn.signal.aborted || end(),
          (error) => {
            if (turn.signal.aborted) return;
            leave();
            // Another tab has taken the lead, because this one did not answer.
            if (error?.name === "AbortError") {
              enter();
              ask(); // it may not have heard what came meanwhile
            } else end(error);
          },
        );
    };
    const end = (error?: Error) => {
      clearInterval(timer);
      leave();
      channel.close();
      if (error) failed(error);
      else done();
    };
    const timer = setInterval(() => {
      if (leads) return;
      checks++;
      if (!story.cursor || checks >= SILENT_CHECKS) ask();
      if (checks < HUNG_CHECKS) return;
      checks = 0;
      leave();
      enter(true);
    }, CHECK_MS);
    // A page that the browser puts aside, to show it again later, runs no code meanwhile.
    globalThis.addEventListener?.("pagehide", () => leave(), { signal });
    globalThis.addEventListener?.("pageshow", ({ persisted }) => persisted && enter(), { signal });
    signal.addEventListener("abort", () => end());
    if (signal.aborted) return end();
    enter();
    ask();
  });
}
