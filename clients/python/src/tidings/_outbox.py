"""The reports that wait to be sent, without I/O or threads.

1. Reports of a subject, or of a lane, are sent in the order in which they were made. A job's later reports wait for the answer to its `start`, because that
   names the attempt to which they belong.
2. A *tick* (progress, message or metadata within one state) that has not been sent yet is folded into the next one of its subject, if the next one
   replaces it or both together have at most `FOLD_MAX_BYTES`. Everything else is a *milestone* and is kept.
3. The number and the size of waiting reports are bounded. If there is no room, the oldest tick is dropped first; without ticks, the new report is.
4. A report is sent as the same bytes, with the same idempotency key, until it is answered.
5. A job that the server has lost is started again before the report that was not accepted. If another worker has started it meanwhile, the attempt is that
   worker's: nothing more is sent about the job.
"""

from __future__ import annotations

import json
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Union, cast
from urllib.parse import quote

from .messages import ProblemCode

CAPACITY = 10_000
CAPACITY_BYTES = 16 * 1024 * 1024
# Ends of jobs may use this much more than other reports, because they matter most.
RESERVE = 1.25
# What a report takes in memory in addition to its body.
OVERHEAD_BYTES = 512
# The server takes 256 KiB by default, and can be configured for more. A larger report is sent without its result and metadata.
REPORT_MAX_BYTES = 1024 * 1024
# Folding does not make a tick larger than this. It bounds what a report costs the work, and the server accepts no more metadata by default.
FOLD_MAX_BYTES = 16 * 1024
BATCH_LINES, BATCH_BYTES = 500, 1024 * 1024
# The server remembers a key for a day. Later, a repetition could be carried out twice.
KEEP_SECS = 20 * 3600.0
MESSAGE_MAX_BYTES = 4_000
# The attempt of a job is known once one of these is answered.
_BARRIERS = frozenset({"start", "retry"})
_WITH_ATTEMPT = frozenset({"progress", "complete", "fail", "cancel"})
_WITH_WORKER = frozenset({"start", "progress", "complete", "fail", "cancel"})
_TERMINAL = frozenset({"complete", "fail", "cancel", "error"})
_ID_FIELDS = {
    "jobs": "job_id",
    "enrollments": "session_id",
    "devices": "device_id",
    "characteristics": "characteristic_id",
    "violations": "violation_id",
}

Body = dict[str, Any]


class Subject(NamedTuple):
    collection: str
    id: str
    school_id: Union[int, None] = None

    @property
    def path(self) -> str:
        return f"/api/{self.collection}/{quote(self.id, safe='')}"


@dataclass
class JobState:
    """What the server has answered about a job. `start` are the fields with which it is started."""

    start: Body = field(default_factory=dict)
    attempt: int | None = None
    event: Body | None = None
    is_superseded: bool = False
    # Whether the job was created with another type than the one that its reports name.
    has_other_type: bool = False

    def adopt(self, event: Body) -> None:
        self.event = event
        if isinstance(event.get("attempt"), int):
            self.attempt = event["attempt"]


@dataclass(eq=False)
class Report:
    """A command for the server. `creates` are the reports that create the subject if the server does not know it."""

    subject: Subject
    verb: str
    body: Body
    is_tick: bool = False
    job: JobState | None = None
    creates: "tuple[Report, ...]" = ()
    # Codes of problems that are expected, and so not worth a warning.
    expected: frozenset[ProblemCode] = frozenset()
    # Whether a job that has failed is retried when it is started again.
    restarts: bool = False
    # Whether it starts a job again that the server has lost.
    is_again: bool = False
    # Whether the job was already started again for this report.
    has_started_again: bool = False
    answered: Callable[[Body | None], None] | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    line: bytes | None = None
    first_sent: float | None = None
    size: int = 0
    is_reduced: bool = False
    # Reports of one lane keep their order, also if they are about several subjects.
    lane: Union[Subject, None] = None

    @property
    def queue(self) -> Subject:
        return self.lane or self.subject

    @property
    def is_terminal(self) -> bool:
        return self.verb in _TERMINAL

    @property
    def is_superseded(self) -> bool:
        return self.job is not None and self.job.is_superseded and self.verb in _WITH_ATTEMPT

    def measure(self) -> None:
        self.size = size_of(self.body)

    def freeze(self, worker: str, now: float) -> bytes:
        """Returns the line of the batch. It stays the same from then on."""
        if self.line is None:
            collection, subject_id, school_id = self.subject
            line: Body = {"op": f"{collection}.{self.verb}", _ID_FIELDS[collection]: subject_id, **self.body}
            if school_id is not None:
                line["school_id"] = school_id
            if self.job is not None:
                if self.job.has_other_type and self.verb != "create":
                    line.pop("job_type", None)
                if self.verb in _WITH_WORKER:
                    line["worker"] = worker
                if self.verb in _WITH_ATTEMPT and self.job.attempt is not None:
                    line["attempt"] = self.job.attempt
            line["idempotency_key"] = self.key
            self.line = json.dumps(line).encode()
            self.first_sent = now
        return self.line

    def thaw(self) -> None:
        """Makes it another request: with another key."""
        self.line, self.first_sent, self.key = None, None, uuid.uuid4().hex

    def reduce(self) -> None:
        """Removes what the server may have rejected, so that at least the end of the job arrives."""
        self.body = {name: value for name, value in self.body.items() if name not in ("metadata", "result")}
        self.is_reduced = True
        self.measure()
        self.thaw()


def size_of(body: Body) -> int:
    return OVERHEAD_BYTES + len(json.dumps(body))


def fold(older: Body, newer: Body) -> Body:
    """Returns the body that has the effect of both. The server merges metadata key by key."""
    both = {**older, **newer}
    if "metadata" in older and "metadata" in newer:
        both["metadata"] = {**older["metadata"], **newer["metadata"]}
    return both


def replaces(newer: Body, older: Body) -> bool:
    """Returns whether nothing of `older` has an effect after `newer`."""
    return newer.keys() >= older.keys() and newer.get("metadata", {}).keys() >= older.get("metadata", {}).keys()


class Outbox:
    def __init__(self, capacity: int = CAPACITY, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity, self._capacity_bytes = capacity, capacity_bytes
        self._queues: OrderedDict[Subject, deque[Report]] = OrderedDict()
        self._ticks: OrderedDict[int, Report] = OrderedDict()
        self.count = self.bytes = self.dropped = self.milestones = 0

    def __len__(self) -> int:
        return self.count

    def offer(self, report: Report) -> bool:
        """Takes a report, unless another worker has taken over its job. Returns whether there was room."""
        if report.is_superseded:
            return True
        report.measure()
        if report.size > REPORT_MAX_BYTES:
            report.reduce()
        queue = self._queues.get(report.queue)
        last = queue[-1] if queue else None
        if report.is_tick and last is not None and last.is_tick and last.line is None and self._fold(last, report):
            return True
        if report.size > REPORT_MAX_BYTES:
            self.dropped += 1
            return False
        scale = RESERVE if report.is_terminal else 1.0
        while self.count + 1 > self._capacity * scale or self.bytes + report.size > self._capacity_bytes * scale:
            if not self._evict():
                self.dropped += 1
                return False
        self._queues.setdefault(report.queue, deque()).append(report)
        self._count(report, 1)
        return True

    def _fold(self, last: Report, report: Report) -> bool:
        """Folds a tick into the one that waits. Returns False if it would become too large."""
        if replaces(report.body, last.body):
            body, size = report.body, report.size
        elif max(last.size, report.size) > FOLD_MAX_BYTES:
            return False  # Known without measuring both together, which would take time for each tick that follows a large one.
        else:
            body = fold(last.body, report.body)
            size = size_of(body)
            if size > FOLD_MAX_BYTES:
                return False
        self.bytes += size - last.size
        last.body, last.size = body, size
        return True

    def _count(self, report: Report, by: int) -> None:
        self.count += by
        self.bytes += by * report.size
        if not report.is_tick:
            self.milestones += by
        elif by > 0:
            self._ticks[id(report)] = report
        else:
            self._ticks.pop(id(report), None)

    def _evict(self) -> bool:
        """Drops the oldest tick that is not on its way."""
        for tick in self._ticks.values():
            if tick.line is None:
                self.remove(tick)
                self.dropped += 1
                return True
        return False

    def take(self, worker: str, now: float, max_lines: int = BATCH_LINES, max_bytes: int = BATCH_BYTES) -> list[Report]:
        """Returns the reports to send next, at least one if any waits. They stay here until they are removed."""
        taken: list[Report] = []
        size = 0
        for report in self._sendable(max_lines):
            line = report.freeze(worker, now)
            if taken and size + len(line) > max_bytes:
                if report.first_sent == now:
                    report.line = report.first_sent = None
                break
            taken.append(report)
            size += len(line)
        return taken

    def _sendable(self, most: int) -> Iterator[Report]:
        count = 0
        for queue in self._queues.values():
            for report in queue:
                if count >= most:
                    return
                count += 1
                yield report
                if report.job is not None and report.verb in _BARRIERS:
                    break

    def remove(self, report: Report) -> None:
        """A report is answered, or given up."""
        queue = self._queues.get(report.queue)
        if queue is None or report not in queue:
            return
        queue.remove(report)
        self._count(report, -1)
        if not queue:
            del self._queues[report.queue]

    def put_first(self, report: Report, reports: "tuple[Report, ...]") -> None:
        """Inserts reports before an accepted one that needs them, so they always have room."""
        queue = self._queues[report.queue]
        at = queue.index(report)
        for needed in reversed(reports):
            if needed.is_again and any(waiting.is_again and waiting.job is needed.job for waiting in queue):
                continue
            needed.lane = report.lane
            needed.measure()
            queue.insert(at, needed)
            self._count(needed, 1)

    def remove_superseded(self, job: JobState) -> None:
        """Another worker has taken over the job: its reports are not sent."""
        for queue in list(self._queues.values()):
            for report in list(queue):
                if report.job is job and report.is_superseded:
                    self.remove(report)

    def expire(self, now: float) -> int:
        """Gives up reports whose keys the server may have forgotten. Returns their number."""
        old = [report for queue in self._queues.values() for report in queue if report.first_sent is not None and now - report.first_sent > KEEP_SECS]
        for report in old:
            self.remove(report)
        self.dropped += len(old)
        return len(old)


@dataclass(frozen=True)
class Verdict:
    """What follows from the answer to a report. `look`: read the job first, then ask `after_look`."""

    is_done: bool = True
    warning: str | None = None
    first: tuple[Report, ...] = ()
    look: bool = False


RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
KEEP = Verdict(is_done=False)
DONE = Verdict()


def judge(report: Report, status: int, event: Body | None, problem: Body) -> Verdict:
    """Decides about the answer to a report."""
    code = cast(ProblemCode, str(problem.get("code") or status))
    if status < 300:
        if report.job is not None and event is not None:
            report.job.adopt(event)
        return DONE
    if status in RETRIED:
        return KEEP
    if status == 404 and report.creates:
        creates, report.creates = report.creates, ()
        if report.job is not None:
            report.thaw()
        return Verdict(is_done=False, first=creates)
    if status == 404 and report.job is not None and report.verb in _WITH_ATTEMPT and not report.has_started_again:
        # The server has lost the job. The attempt of the new one is known once it has started.
        report.has_started_again, report.job.attempt = True, None
        report.thaw()
        return Verdict(is_done=False, first=(Report(report.subject, "start", report.job.start, job=report.job, is_again=True),))
    if status == 409 and report.job is not None and code in ("finished", "illegal-transition") and report.verb != "create":
        return Verdict(look=True)
    if status in (409, 422) and report.job is not None and not report.job.has_other_type and "`job_type`" in str(problem.get("detail")):
        report.job.has_other_type = True
        report.thaw()
        return Verdict(is_done=False, first=())
    if code == "stale-attempt" and report.job is not None:
        report.job.is_superseded = True
    if status in (413, 422) and report.is_terminal and not report.is_reduced:
        report.reduce()
        return Verdict(is_done=False, warning=f"{problem.get('detail') or code}; it is sent without result and metadata")
    if code in report.expected or status == 410:
        return DONE
    return Verdict(warning=str(problem.get("detail") or code))


def after_look(report: Report, worker: str, job: Body, problem: Body) -> Verdict:
    """Decides about a report of this worker that a job's status does not allow, now that the job is known."""
    state = report.job
    assert state is not None, "only reports of jobs are looked at"
    status = job.get("status")
    if report.is_again and not (status == "in_progress" and job.get("worker") == worker):
        state.is_superseded = True
        return Verdict(warning="another worker has started the job again")
    if report.verb == "start":
        if status == "in_progress" or status == "cancelled":
            # Another process has started this attempt, or a user does not want the job any more.
            state.adopt(job)
            return DONE
        if status == "failed" and report.restarts:
            report.restarts = False
            report.thaw()
            retry = Report(report.subject, "retry", {}, job=state, expected=frozenset({"illegal-transition"}))
            return Verdict(is_done=False, first=(retry,))
    if state.attempt is None or state.attempt == job.get("attempt"):
        state.adopt(job)
    if cast(ProblemCode, str(problem.get("code"))) in report.expected:
        return DONE
    return Verdict(warning=str(problem.get("detail") or status))
