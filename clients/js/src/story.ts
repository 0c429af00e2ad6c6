/**
 * The reader of one scope, without any I/O: from the messages of its connections it makes one story, whole, once, in order.
 *
 * 1. The cursor is that of the last event, `ready` or heartbeat, and never moves back.
 * 2. An event whose `seq` is not above the last one since the last `reset` is a repetition, and is dropped.
 * 3. `ready` is delivered once at the start and once after each `reset`.
 *
 * Absent: connections, time, and any knowledge of where messages come from. The connection, another tab and a stored page
 * use the same story.
 */
import type { Message, Tiding, TidingsEvent } from "./messages.js";

/** A story up to now, for another tab or the next page. */
export interface Chapter {
  cursor: string;
  seq: number;
  ready: boolean;
  events: TidingsEvent[];
}

const ID = encodeURIComponent;

/** Returns the key of the part of a subject that an event describes, such as `jobs/42` or `devices/7#info`. */
export function keyOf(event: Message): string | undefined {
  // biome-ignore lint/suspicious/noExplicitAny: fields of every kind
  const fields: any = event.payload ?? event;
  if (fields.job_id != null) return `jobs/${ID(fields.job_id)}`;
  if (fields.session_id != null) return `enrollments/${ID(fields.session_id)}`;
  if (fields.device_id != null) return `devices/${ID(fields.device_id)}${event.type === "device_info_update" ? "#info" : ""}`;
  if (fields.schedule_id != null) return `schedules/${ID(fields.schedule_id)}`;
  if (fields.violation_id != null) return `violations/${ID(fields.violation_id)}`;
  if (fields.characteristic_id != null)
    return `characteristics/${ID(fields.characteristic_id)}#${event.type === "sample" ? "sample" : "limits"}`;
  return undefined;
}

/** Returns the epoch and `seq` of a cursor: `<epoch>-<seq>-<tag>`, and perhaps more. What cannot be read is 0: then more is asked for than is needed. */
export function placeOf(cursor: string): { epoch: string; seq: number } {
  const [epoch = "", seq] = cursor.split(/[-.]/);
  return { epoch, seq: Number(seq) || 0 };
}

/** Returns whether an event takes its subject out of the present state. */
function isOver({ type, status, payload }: Message): boolean {
  // biome-ignore lint/suspicious/noExplicitAny: fields of every kind
  return (type === "schedule_update" && status === "removed") || (payload as any)?.acknowledged === true;
}

export class Story {
  readonly #keeps: boolean;
  /** Where to resume; empty: at the start. */
  cursor = "";
  /** The last event's place since the last `reset`. */
  seq = 0;
  /** Whether the state is complete. */
  ready = false;
  /** The present state: the latest event of each part of each subject. */
  readonly state = new Map<string, TidingsEvent>();

  /** `keeps`: whether it keeps the present state. */
  constructor(keeps = true) {
    this.#keeps = keeps;
  }

  /** Takes a message of a connection. Returns it if the application gets it. */
  take(message: Message): Tiding | undefined {
    const { type, seq } = message;
    if (type === "reset") {
      this.state.clear();
      this.cursor = "";
      this.seq = 0;
      this.ready = false;
    } else if (type === "ready" || type === "heartbeat") {
      this.cursor = message.cursor || this.cursor;
      if (this.ready || type === "heartbeat") return undefined;
      this.ready = true;
    } else if (typeof seq === "number" && seq > this.seq) {
      this.seq = seq;
      this.cursor = message.cursor || this.cursor;
      const key = this.#keeps && keyOf(message);
      if (key) {
        // The order of the state is that of the log.
        this.state.delete(key);
        if (!isOver(message)) this.state.set(key, message as unknown as TidingsEvent);
      }
    } else return undefined;
    return message as unknown as Tiding;
  }

  /** Returns the story up to now. */
  tell(): Chapter {
    return { cursor: this.cursor, seq: this.seq, ready: this.ready, events: [...this.state.values()] };
  }

  /** Returns the messages that bring a reader that knows nothing up to the present. */
  retell(): Tiding[] {
    const told: Tiding[] = [...this.state.values()].map((event) => ({ ...event, snapshot: true as const }));
    return this.ready ? [...told, { type: "ready", cursor: this.cursor }] : told;
  }

  /** Continues a story that was told elsewhere, and returns what the application gets. */
  continue(chapter: Chapter): Tiding[] {
    for (const event of chapter.events) this.take(event as unknown as Message);
    this.cursor = chapter.cursor;
    this.seq = chapter.seq;
    this.ready = chapter.ready;
    return this.retell();
  }
}
