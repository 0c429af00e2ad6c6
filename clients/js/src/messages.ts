/** What a server sends. Field by field: docs/kinds.md. */

/** The fields of every event. Fields that this version does not know are kept. */
export interface EventBase {
  type: string;
  /** Where to resume behind this event. Opaque. */
  cursor: string;
  school_id: number;
  /** The place in the school's log. */
  seq: number;
  /** RFC 3339, UTC. */
  timestamp: string;
  /** Present in the current state that a stream begins with. */
  snapshot?: true;
  /** The server removed a part that was too large: see `max_event_bytes`. */
  truncated?: true;
}

export type JobStatus = "pending" | "queued" | "in_progress" | "completed" | "failed" | "cancelled";

export interface JobProgress extends EventBase {
  type: "job_progress";
  job_id: string;
  job_type: string;
  status: JobStatus;
  /** From 0 to 100; null: indeterminate. */
  progress: number | null;
  message: string;
  metadata: Record<string, unknown>;
  attempt: number;
  eta_at: string | null;
  eta_low_at: string | null;
  eta_high_at: string | null;
  eta_source: "rate" | "history" | "both" | null;
  stalled: boolean;
  cancel_requested: boolean;
  result?: unknown;
  error?: { code: string; message: string };
}

interface EnrollmentBase extends EventBase {
  session_id: string;
  device_id: string | null;
  student_id: string | null;
  attempt: number | null;
  total_attempts: number | null;
}

export type EnrollmentEvent =
  | (EnrollmentBase & {
      type: "enrollment_progress";
      status: "ready" | "placing" | "capturing" | "processing";
      progress: number;
      message: string;
    })
  | (EnrollmentBase & {
      type: "enrollment_complete";
      status: "complete";
      progress: number;
      message: string;
      quality_score: number | null;
    })
  | (EnrollmentBase & { type: "enrollment_error"; status: "error"; error: string; code: string })
  | (EnrollmentBase & { type: "enrollment_cancelled"; status: "cancelled"; message: string });

export interface DeviceStatus extends EventBase {
  type: "device_status_update";
  device_id: string;
  status: "online" | "offline" | "unknown";
  last_seen: string | null;
  name: string | null;
  flapping: boolean;
  lease_secs: number;
}

export interface DeviceInfo extends EventBase {
  type: "device_info_update";
  device_id: string;
  info: Record<string, unknown>;
  name: string | null;
  lease_secs: number;
}

/** Events of a characteristic carry their fields in `payload`. */
export interface CharacteristicEvent extends EventBase {
  type: "sample" | "violation" | "ack_update" | "control_limits";
  payload: Record<string, unknown> & { characteristic_id: string };
}

/** Whether the jobs of a type run when they are expected. */
export interface ScheduleUpdate extends EventBase {
  type: "schedule_update";
  /** The type of its jobs. */
  schedule_id: string;
  status: "on_time" | "late" | "missed" | "removed";
  message: string;
  due_at: string | null;
  missed_since: string | null;
  missed_at: string | null;
  last_run: { job_id: string; status: JobStatus; started_at: string; finished_at: string | null } | null;
  /** Either this, with its time zone, or `period_secs`. */
  cron: string | null;
  time_zone: string | null;
  period_secs: number | null;
  grace_secs: number;
  max_run_secs: number;
}

/** An event: something that happened to a subject. */
export type TidingsEvent =
  | JobProgress
  | EnrollmentEvent
  | DeviceStatus
  | DeviceInfo
  | CharacteristicEvent
  | ScheduleUpdate;

/** The snapshot, or what was missed, is complete; live events follow. */
export interface Ready {
  type: "ready";
  cursor: string;
}

/** What was known is void: a fresh snapshot and `ready` follow. */
export interface Reset {
  type: "reset";
  reason: "expired" | "unknown_epoch" | "too_far_behind" | "history_changed" | (string & {});
}

/** What a watch delivers. */
export type Tiding = TidingsEvent | Ready | Reset;

/** Any message of a connection. */
export interface Message {
  type: string;
  cursor?: string;
  seq?: number;
  [field: string]: unknown;
}
