"""Replacements for the in-process broadcasters of existing back ends: the same names and parameters, with Tidings behind them.

Moving is one import. No method waits for the server or raises an error because of it: reports go through the queue of `tidings.reporter()`, so
`TIDINGS_URL` and `TIDINGS_TOKEN`, or `tidings.configure(…)`, name the server. A subject that the server does not know is created.
"""

from __future__ import annotations

import datetime
import inspect
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ._clean import cut, jsonable, number
from ._job import Job, subject_id
from ._outbox import MESSAGE_MAX_BYTES, Body, Report, Subject
from ._reporter import Reporter, reporter

log = logging.getLogger("tidings")
# Silence after which a session ends and a device is offline. A health checker may report only every five minutes.
LEASE_SECS = 600
# A job's metadata may have 16 KiB in total; a larger result is sent only as the job's `result`.
METADATA_RESULT_MAX_BYTES = 8_192
ERROR_MAX_BYTES = 1_000
# How many jobs and uploads are remembered that never ended.
REMEMBERED_MAX = 10_000
# How long `mark_started` waits to learn whether the job was cancelled while it waited, if the server answers at all.
STARTED_WAIT_SECS = 2.0


def _without_none(**fields: Any) -> Body:
    return {name: jsonable(value) for name, value in fields.items() if value is not None}


def _iso(time: Any) -> Any:
    return time.isoformat() if isinstance(time, (datetime.datetime, datetime.date)) else time


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


class _Done(Coroutine[None, None, None]):
    """What methods return that some back ends await or make a task of, and others do neither: unlike a function's, it needs no `await`."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield

    def send(self, _: None) -> None:
        raise StopIteration

    def throw(self, error: Any, value: Any = None, traceback: Any = None) -> None:
        raise error

    def close(self) -> None:
        pass


class _DropIn:
    def __init__(self, reporter: Reporter | None = None) -> None:
        self._own_reporter = reporter

    @property
    def _reporter(self) -> Reporter:
        return self._own_reporter or reporter()

    def _tell(self, collection: str, id: object, verb: str, body: Body, school_id: int | None, creates: tuple[Report, ...] = ()) -> None:
        subject = Subject(collection, subject_id(id), self._reporter.school_id if school_id is None else school_id)
        self._reporter.report(Report(subject, verb, body, creates=creates))


class EnrollmentProgressBroadcaster(_DropIn):
    """School enrollment. With `scans`, the progress covers this number of scans."""

    def __init__(self, scans: int | None = None, reporter: Reporter | None = None) -> None:
        super().__init__(reporter)
        self._scans = scans

    async def broadcast_progress(self, school_id: int, session_id: str, progress: int, status: str, message: str) -> None:
        # The end of a scan is not the end of the session, which `broadcast_completion` reports.
        status = "processing" if status == "complete" else status
        self._report(school_id, session_id, "progress", progress=number(progress), status=status, message=cut(message, MESSAGE_MAX_BYTES))

    async def broadcast_completion(
        self, school_id: int, session_id: str, message: str = "Enrollment complete", quality_score: float | None = None
    ) -> None:
        self._report(school_id, session_id, "complete", message=cut(message, MESSAGE_MAX_BYTES), quality_score=quality_score)

    async def broadcast_cancelled(self, school_id: int, session_id: str, message: str = "Enrollment cancelled") -> None:
        self._report(school_id, session_id, "cancel", message=cut(message, MESSAGE_MAX_BYTES))

    async def broadcast_error(self, school_id: int, session_id: str, error_message: str) -> None:
        self._report(school_id, session_id, "error", error=cut(error_message, MESSAGE_MAX_BYTES))

    def register(self, *_: Any, **__: Any) -> _Done:
        log.warning("a page connected to this process: route /ws/enrollment to Tidings")
        return _Done()

    def disconnect(self, *_: Any, **__: Any) -> _Done:
        return _Done()

    def get_connection_count(self, school_id: int | None = None) -> int:
        """Returns 1, because callers skip reports without listeners, but Tidings also keeps events for later ones."""
        return 1

    def _report(self, school_id: int, session_id: str, verb: str, **body: Any) -> None:
        made = _without_none(lease_secs=LEASE_SECS, total_attempts=self._scans)
        subject = Subject("enrollments", subject_id(session_id), school_id)
        create = Report(subject, "create", made, expected=frozenset({"already-exists"}))
        self._tell("enrollments", session_id, verb, _without_none(**body), school_id, (create,))


class DeviceStatusBroadcaster(_DropIn):
    """School devices, reported by a health checker."""

    async def broadcast_device_status(self, school_id: int, device_id: int, status: str, last_seen: datetime.datetime | None = None) -> None:
        body = _without_none(status=status, last_seen=_iso(last_seen), lease_secs=LEASE_SECS)
        self._tell("devices", device_id, "status", body, school_id)

    async def broadcast_device_info(self, school_id: int, device_id: int, device_info: Mapping[str, Any]) -> None:
        self._tell("devices", device_id, "put", {"info": jsonable(device_info), "lease_secs": LEASE_SECS}, school_id)

    def register(self, *_: Any, **__: Any) -> _Done:
        log.warning("a page connected to this process: route /ws/device-status to Tidings")
        return _Done()

    def disconnect(self, *_: Any, **__: Any) -> _Done:
        return _Done()

    def get_connection_count(self, school_id: int | None = None) -> int:
        """Returns 1, as `EnrollmentProgressBroadcaster` does."""
        return 1


class ProcessingJobLifecycle:
    """Document jobs. The back end still stores them and passes them to Celery."""

    # The type of a job that was created before Tidings received its first report.
    unknown_type: ClassVar[str] = "job"
    reporter: ClassVar[Reporter | None] = None
    _jobs: ClassVar[OrderedDict[str, Job]] = OrderedDict()
    _lock: ClassVar[threading.RLock] = threading.RLock()

    @classmethod
    def enqueue(cls, job_type: Any, payload: Any, *_: Any, job_id: object = None, **__: Any) -> str:
        """Returns the job's id. The payload is for the worker and is not sent."""
        job = Job(str(getattr(job_type, "value", job_type)), id=job_id, reporter=cls.reporter)
        job._create("pending", None, None)
        with cls._lock:
            cls._remember(job)
        return job.id

    @classmethod
    def mark_queued(cls, job_id: object, queue_name: str | None = None, task_id: str | None = None) -> Body:
        metadata = _without_none(queue_name=queue_name, task_id=task_id)
        job = cls._job(job_id)
        create = Report(job._subject, "create", {"job_type": job.type}, job=job._state, expected=frozenset({"already-exists"}))
        body: Body = {"metadata": metadata} if metadata else {}
        job._reporter.report(Report(job._subject, "queue", body, job=job._state, creates=(create,)))
        return job.snapshot

    @classmethod
    def mark_started(cls, job_id: object) -> Body:
        """Returns the job. Its `status` is `cancelled` if a user cancelled it while it waited, and the server has answered in time. A job that has
        failed gets another attempt, because Celery retries it."""
        job = cls._job(job_id).start()
        if not job._reporter.is_failing:
            job._reporter.flush(STARTED_WAIT_SECS, patient=False)
        return job.snapshot

    @classmethod
    def mark_progress(
        cls, job_id: object, progress: float | None = None, message: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Body:
        """Returns the job as last answered. Its `cancel_requested` is true if a user wants it to stop."""
        job = cls._job(job_id)
        job.update(progress, message, metadata)
        return job.snapshot

    @classmethod
    def mark_completed(cls, job_id: object, result_payload: Any = None) -> Body:
        job = cls._job(job_id, forget=True)
        job.complete(result_payload, metadata=cls._metadata(error=None, result=result_payload))
        return job.snapshot

    @classmethod
    def mark_failed(cls, job_id: object, error_message: object = "", result_payload: Any = None, **_: Any) -> Body:
        job = cls._job(job_id, forget=True)
        error = cut(error_message, ERROR_MAX_BYTES) or "It failed"
        job.fail(error, metadata=cls._metadata(error=error, result=result_payload))
        return job.snapshot

    @classmethod
    def _job(cls, job_id: object, forget: bool = False) -> Job:
        with cls._lock:
            job = cls._jobs.pop(subject_id(job_id), None)
            if job is None or (cls.reporter is not None and job._reporter is not cls.reporter):
                job = Job(cls.unknown_type, id=job_id, reporter=cls.reporter)
            if not forget:
                cls._remember(job)
        return job

    @classmethod
    def _remember(cls, job: Job) -> None:
        cls._jobs[job.id] = job
        while len(cls._jobs) > REMEMBERED_MAX:
            cls._jobs.popitem(last=False)

    @staticmethod
    def _metadata(**fields: Any) -> Body:
        """Returns the metadata in which pages expect results and errors. None removes values of an earlier attempt."""
        found: Body = jsonable(fields)
        fits = len(json.dumps(found)) <= METADATA_RESULT_MAX_BYTES
        return found if fits else {**found, "result": None}


class AlertNotifier(_DropIn):
    """Process control. Pass `SampleProcessedEvent` to `sample_processed` and `ControlLimitsUpdatedEvent` to `control_limits_updated` as well.

    The methods read attributes, so they take the back end's own events and those of this module."""

    def __init__(self, reporter: Reporter | None = None) -> None:
        super().__init__(reporter)
        self._known: OrderedDict[str, None] = OrderedDict()

    async def notify_violation_created(self, event: Any) -> None:
        names = ("violation_id", "sample_id", "rule_id", "rule_name", "severity")
        body = {name: getattr(event, name) for name in names}
        # An enumeration's value is the word that the server knows.
        body["severity"] = getattr(body["severity"], "value", body["severity"])
        self._about(event.characteristic_id, "violations", _without_none(**body, timestamp=_iso(event.timestamp)))

    async def notify_violation_acknowledged(self, event: Any) -> None:
        self._in_order("violations", event.violation_id, "ack", _without_none(user=event.user, reason=event.reason))

    async def sample_processed(self, event: Any) -> None:
        """For `SampleProcessedEvent`, with the back end's own verdict."""
        names = ("sample_id", "zone", "in_control")
        body = {name: getattr(event, name, None) for name in names}
        self._about(event.characteristic_id, "samples", _without_none(value=event.mean, **body, timestamp=_iso(event.timestamp)))

    async def control_limits_updated(self, event: Any) -> None:
        """For `ControlLimitsUpdatedEvent`."""
        names = ("center_line", "ucl", "lcl", "method", "sample_count")
        limits = {name: jsonable(getattr(event, name)) for name in names}
        self._in_order("characteristics", event.characteristic_id, "put", {"limits": limits})

    def _about(self, characteristic_id: object, verb: str, body: Body) -> None:
        # A put without fields creates an unknown characteristic and changes nothing about a known one. If it were sent only after a rejection, a
        # later acknowledgement would arrive before its violation.
        known = subject_id(characteristic_id)
        if known not in self._known:
            self._in_order("characteristics", known, "put", {})
            self._known[known] = None
            while len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        self._in_order("characteristics", known, verb, body)

    def _in_order(self, collection: str, id: object, verb: str, body: Body) -> None:
        school_id = self._reporter.school_id
        lane = Subject("characteristics", "", school_id)
        self._reporter.report(Report(Subject(collection, subject_id(id), school_id), verb, body, lane=lane))


@dataclass(frozen=True)
class ViolationCreated:
    violation_id: int
    sample_id: int
    characteristic_id: int
    rule_id: int
    rule_name: str
    severity: str
    timestamp: datetime.datetime


@dataclass(frozen=True)
class ViolationAcknowledged:
    violation_id: int
    user: str
    reason: str
    timestamp: datetime.datetime


@dataclass(frozen=True)
class SampleProcessedEvent:
    """`zone` and `in_control` are the back end's own verdict. `range_value` is not sent: no message has it."""

    sample_id: int
    characteristic_id: int
    mean: float
    range_value: float | None
    zone: str
    in_control: bool
    timestamp: datetime.datetime = field(default_factory=_now)


@dataclass(frozen=True)
class ControlLimitsUpdatedEvent:
    characteristic_id: int
    center_line: float
    ucl: float
    lcl: float
    method: str = "moving_range"
    sample_count: int = 0
    timestamp: datetime.datetime = field(default_factory=_now)


@dataclass(frozen=True)
class ProgressEvent:
    file_id: str
    progress: int
    message: str = ""


class ProgressNotifier(_DropIn):
    """Uploads. Each upload is a job of its own, because a file may be uploaded again under the same name."""

    def __init__(self, reporter: Reporter | None = None) -> None:
        super().__init__(reporter)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.RLock()

    def notify(self, event: Any) -> None:
        """`progress` below 0 is a failure, and 100 or more is the end."""
        progress = number(event.progress) or 0.0
        is_over = not 0 <= progress < 100
        with self._lock:
            job = self._jobs.pop(event.file_id, None)
            if job is None or job.snapshot["status"] in ("completed", "failed", "cancelled"):
                job = Job("upload", metadata={"file_id": event.file_id, "title": event.file_id}, reporter=self._reporter).start()
            if not is_over:
                self._jobs[event.file_id] = job
                while len(self._jobs) > REMEMBERED_MAX:
                    self._jobs.popitem(last=False)
        if progress < 0:
            job.fail(event.message or "The upload failed")
        elif is_over:
            job.complete(message=event.message or None)
        else:
            job.update(progress, event.message or None)


progress_notifier = ProgressNotifier()


class Both:
    """Reports to both Tidings and the old object, while pages of both kinds are open. The caller gets what the old object returns or raises, as before."""

    ONLY_OLD = ("register", "disconnect", "get_connection_count", "enqueue")

    def __init__(self, old: Any, new: Any) -> None:
        self._old, self._new = old, new

    def __getattr__(self, name: str) -> Any:
        old, new = getattr(self._old, name), getattr(self._new, name, None)
        if new is None or name in self.ONLY_OLD:
            return old

        def both(*args: Any, **kwargs: Any) -> Any:
            result = new(*args, **kwargs)
            if not inspect.isawaitable(result):
                return old(*args, **kwargs)

            async def in_turn() -> Any:
                await result
                return await old(*args, **kwargs)

            return in_turn()

        return both


__all__ = [
    "AlertNotifier",
    "Both",
    "ControlLimitsUpdatedEvent",
    "DeviceStatusBroadcaster",
    "EnrollmentProgressBroadcaster",
    "ProcessingJobLifecycle",
    "ProgressEvent",
    "ProgressNotifier",
    "SampleProcessedEvent",
    "ViolationAcknowledged",
    "ViolationCreated",
    "progress_notifier",
]
