"""What a server sends: the types of messages, states and problems.

Rendered from `/openapi.json` and `/asyncapi.json` of a server. Do not edit: run `TIDINGS_WRITE_TYPES=1 pytest tests/test_messages.py`.

Messages are plain dictionaries at run time. Later servers may add fields, statuses and problems.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Union

JobStatus = Literal["pending", "queued", "in_progress", "completed", "failed", "cancelled"]
# The `code` of a problem.
ProblemCode = Literal["already-exists", "answer-gone", "bad-handshake", "bad-request", "batch-too-large", "body-too-large", "cross-origin", "finished", "forbidden", "headers-too-large", "held", "idempotency-key-reused", "illegal-transition", "internal", "invalid-body", "invalid-cursor", "invalid-header", "invalid-query", "malformed-json", "method-not-allowed", "not-acceptable", "not-found", "school-required", "stale-attempt", "too-fast", "too-many-reads", "too-many-streams", "too-many-subjects", "unauthorized", "unavailable", "unsupported-encoding", "unsupported-version"]


class AckPayload(TypedDict):
    """An acknowledgement, or its withdrawal."""

    violation_id: str
    characteristic_id: str
    acknowledged: bool
    ack_user: str | None
    ack_reason: str | None
    user: str
    reason: str
    timestamp: str


class _AckUpdate(TypedDict):
    type: Literal["ack_update"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    payload: AckPayload


class AckUpdate(_AckUpdate, total=False):
    """The fields of a characteristic's message: an envelope."""

    snapshot: Literal[True]
    truncated: Literal[True]


class Dispersion(TypedDict):
    """A dispersion chart: its type and its lines. Messages, the API and the database share this form."""

    chart: Literal["mr", "r", "s"]
    center_line: float
    ucl: float | None
    lcl: float | None


class Baseline(TypedDict):
    """A baseline in a message."""

    method: str
    samples: int


class _LimitsPayload(TypedDict):
    characteristic_id: str
    center_line: float | None
    ucl: float | None
    lcl: float | None
    method: str | None
    sample_count: int
    limits_version: int | None
    baseline: Baseline | None


class LimitsPayload(_LimitsPayload, total=False):
    """The limits in force."""

    dispersion: Dispersion


class _ControlLimits(TypedDict):
    type: Literal["control_limits"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    payload: LimitsPayload


class ControlLimits(_ControlLimits, total=False):
    """The fields of a characteristic's message: an envelope."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _DeviceInfoUpdate(TypedDict):
    type: Literal["device_info_update"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    device_id: str
    info: dict[str, Any]
    name: str | None
    lease_secs: int


class DeviceInfoUpdate(_DeviceInfoUpdate, total=False):
    """A device's information about itself, other than its status."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _DeviceStatusUpdate(TypedDict):
    type: Literal["device_status_update"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    device_id: str
    status: Literal["unknown", "online", "offline"]
    last_seen: str | None
    name: str | None
    flapping: bool
    lease_secs: int


class DeviceStatusUpdate(_DeviceStatusUpdate, total=False):
    """The status of a device."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _EnrollmentCancelled(TypedDict):
    type: Literal["enrollment_cancelled"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    session_id: str
    status: Literal["cancelled"]
    message: str
    device_id: str | None
    student_id: str | None
    attempt: int | None
    total_attempts: int | None


class EnrollmentCancelled(_EnrollmentCancelled, total=False):
    """The end of a session that was cancelled."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _EnrollmentComplete(TypedDict):
    type: Literal["enrollment_complete"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    session_id: str
    progress: int
    status: Literal["complete"]
    message: str
    quality_score: float | None
    device_id: str | None
    student_id: str | None
    attempt: int | None
    total_attempts: int | None


class EnrollmentComplete(_EnrollmentComplete, total=False):
    """The end of a session that succeeded."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _EnrollmentError(TypedDict):
    type: Literal["enrollment_error"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    session_id: str
    status: Literal["error"]
    error: str
    code: str
    device_id: str | None
    student_id: str | None
    attempt: int | None
    total_attempts: int | None


class EnrollmentError(_EnrollmentError, total=False):
    """The end of a session that failed."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _EnrollmentProgress(TypedDict):
    type: Literal["enrollment_progress"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    session_id: str
    progress: int
    status: Literal["ready", "placing", "capturing", "processing"]
    message: str
    device_id: str | None
    student_id: str | None
    attempt: int | None
    total_attempts: int | None


class EnrollmentProgress(_EnrollmentProgress, total=False):
    """A step of a session."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _JobError(TypedDict):
    code: str
    message: str


class JobError(_JobError, total=False):
    """Why a job failed or was cancelled."""

    details: Any


class _JobProgress(TypedDict):
    type: Literal["job_progress"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    job_id: str
    job_type: str
    status: JobStatus
    progress: float | None
    message: str
    metadata: dict[str, Any]
    attempt: int
    eta_at: str | None
    eta_low_at: str | None
    eta_high_at: str | None
    eta_source: Literal["rate", "history", "both"] | None
    stalled: bool
    cancel_requested: bool


class JobProgress(_JobProgress, total=False):
    """The state of a job at the time of the event."""

    snapshot: Literal[True]
    truncated: Literal[True]
    result: Any
    error: JobError


class DispersionPoint(TypedDict):
    """A point on a dispersion chart, with its zone."""

    chart: Literal["mr", "r", "s"]
    value: float
    zone: Literal["beyond_ucl", "zone_a_upper", "zone_b_upper", "zone_c_upper", "zone_c_lower", "zone_b_lower", "zone_a_lower", "beyond_lcl"]


class _ViolationPayload(TypedDict):
    violation_id: str
    characteristic_id: str
    sample_id: str | None
    rule_id: int
    rule_name: str
    severity: Literal["info", "warning", "critical"]
    timestamp: str


class ViolationPayload(_ViolationPayload, total=False):
    """A broken rule."""

    chart: Literal["mr", "r", "s"]


class _SamplePayload(TypedDict):
    sample_id: str
    characteristic_id: str
    timestamp: str
    value: float | None
    mean: float | None
    zone: str | None
    in_control: bool
    judged_by: str | None
    rules: list[int]
    limits_version: int | None
    violations: list[ViolationPayload]


class SamplePayload(_SamplePayload, total=False):
    """A measurement with its evaluation."""

    range: float
    dispersion: DispersionPoint


class _Sample(TypedDict):
    type: Literal["sample"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    payload: SamplePayload


class Sample(_Sample, total=False):
    """The fields of a characteristic's message: an envelope."""

    snapshot: Literal[True]
    truncated: Literal[True]


class ScheduleRun(TypedDict):
    """A run: a job that has started."""

    job_id: str
    status: JobStatus
    started_at: str
    finished_at: str | None


class _ScheduleUpdate(TypedDict):
    type: Literal["schedule_update"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    schedule_id: str
    status: Literal["on_time", "late", "missed", "removed"]
    message: str
    due_at: str | None
    missed_since: str | None
    missed_at: str | None
    last_run: ScheduleRun | None
    cron: str | None
    time_zone: str | None
    period_secs: int | None
    grace_secs: int
    max_run_secs: int


class ScheduleUpdate(_ScheduleUpdate, total=False):
    """The state of a schedule."""

    snapshot: Literal[True]
    truncated: Literal[True]


class _Violation(TypedDict):
    type: Literal["violation"]
    cursor: str
    school_id: int
    seq: int
    timestamp: str
    payload: ViolationPayload


class Violation(_Violation, total=False):
    """The fields of a characteristic's message: an envelope."""

    snapshot: Literal[True]
    truncated: Literal[True]


class Job(JobProgress):
    """A job's data that is not in its events."""

    created_at: str
    heard_at: str
    started_at: str | None
    finished_at: str | None
    worker: str | None


class _EnrollmentSession(TypedDict):
    """A session's data that is not in its events."""

    created_at: str
    heard_at: str
    finished_at: str | None
    lease_secs: int


class EnrollmentSessionAfterProgress(EnrollmentProgress, _EnrollmentSession):
    pass


class EnrollmentSessionAfterComplete(EnrollmentComplete, _EnrollmentSession):
    pass


class EnrollmentSessionAfterError(EnrollmentError, _EnrollmentSession):
    pass


class EnrollmentSessionAfterCancelled(EnrollmentCancelled, _EnrollmentSession):
    pass


# A state as of its last event, which is one of these.
EnrollmentSession = Union[EnrollmentSessionAfterProgress, EnrollmentSessionAfterComplete, EnrollmentSessionAfterError, EnrollmentSessionAfterCancelled]


class _Device(TypedDict):
    """A device's data that is not in the event of its status."""

    info: dict[str, Any]
    created_at: str


class DeviceAfterStatusUpdate(DeviceStatusUpdate, _Device):
    pass


class DeviceAfterInfoUpdate(DeviceInfoUpdate, _Device):
    pass


# A state as of its last event, which is one of these.
Device = Union[DeviceAfterStatusUpdate, DeviceAfterInfoUpdate]


class CharacteristicRule(TypedDict):
    rule_id: int
    rule_name: str
    severity: Literal["info", "warning", "critical"]


class _Characteristic(TypedDict):
    """A characteristic's data that is not in the event of its limits."""

    characteristic_id: str
    name: str | None
    unit: str | None
    status: str
    subgroup_size: int
    rules: list[CharacteristicRule]
    limits_version: int | None
    baseline_collected: int | None
    sample_count: int
    violation_count: int
    created_at: str


class CharacteristicAfterSample(Sample, _Characteristic):
    pass


class CharacteristicAfterViolation(Violation, _Characteristic):
    pass


class CharacteristicAfterAckUpdate(AckUpdate, _Characteristic):
    pass


class CharacteristicAfterControlLimits(ControlLimits, _Characteristic):
    pass


# A state as of its last event, which is one of these.
Characteristic = Union[CharacteristicAfterSample, CharacteristicAfterViolation, CharacteristicAfterAckUpdate, CharacteristicAfterControlLimits]


class Schedule(ScheduleUpdate):
    """A schedule's data that is not in its events."""

    created_at: str


class _Problem(TypedDict):
    type: str
    title: str
    status: int
    detail: str
    code: str


class Problem(_Problem, total=False):
    """An error as the client sees it."""

    limit: str


class Ready(TypedDict):
    """The snapshot or replay is complete. What follows is live."""

    type: Literal["ready"]
    cursor: str


class Reset(TypedDict):
    """The cursor could not be honoured. A snapshot follows."""

    type: Literal["reset"]
    reason: Literal["expired", "unknown_epoch", "too_far_behind", "history_changed"]


# An event: something that happened to a subject.
Event = Union[AckUpdate, ControlLimits, DeviceInfoUpdate, DeviceStatusUpdate, EnrollmentCancelled, EnrollmentComplete, EnrollmentError, EnrollmentProgress, JobProgress, Sample, ScheduleUpdate, Violation]


# What `watch` returns.
Tiding = Union[Event, Ready, Reset]
