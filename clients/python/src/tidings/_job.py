"""A job: a piece of work that reports its progress."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
import traceback
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sized
from types import TracebackType
from typing import Any, Generic, TypeVar, Union, cast

from . import _reporter
from ._clean import cut, jsonable, number, text
from ._outbox import MESSAGE_MAX_BYTES, Body, JobState, Report, Subject
from .messages import ProblemCode

_T = TypeVar("_T")
ID_MAX_BYTES = 128
TYPE_MAX_BYTES = 64
CODE_MAX_BYTES = 64
TRACEBACK_MAX_BYTES = 4_000
# `track` reports at most this often.
TRACK_SECS = 0.1
FINISHED = frozenset({"completed", "failed", "cancelled"})

_current: contextvars.ContextVar["Job | None"] = contextvars.ContextVar("tidings_job", default=None)


class Cancelled(Exception):
    """A user wants the job to stop. Raised by `Job.check` and by `track`; a `with` block of the job confirms it to the server."""


def subject_id(value: object) -> str:
    """Returns an id that the server accepts: a text of 1 to 128 bytes without control characters."""
    printable = "".join(letter for letter in text(value) if ord(letter) >= 32 and not 0x7F <= ord(letter) < 0xA0)
    found = cut(printable, ID_MAX_BYTES)
    return found if found not in ("", ".", "..") else f"_{found}"


def job_type(value: object) -> str:
    """Returns a job type that the server accepts: letters, digits and `._:~-`."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._:~-") else "-" for letter in text(value))
    return plain[-TYPE_MAX_BYTES:] if plain.strip(".") else "job"


class Job:
    """Reports about one job. No method waits for the server or raises an error because of it.

    As a context manager, for `with` and `async with`, it starts the job, and completes, fails or cancels it at the end of the block. Without
    one, call `start` and one of `complete`, `fail` and `cancel`.
    """

    def __init__(
        self,
        job_type: str,
        *,
        id: object = None,
        title: str | None = None,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        school_id: int | None = None,
        stall_after_secs: int | None = None,
        timeout_secs: int | None = None,
        stop_on_cancel: bool = True,
        reporter: _reporter.Reporter | None = None,
    ) -> None:
        self.type = _plain_type(job_type)
        self.id = subject_id(id if id is not None else uuid.uuid4())
        self._reporter = reporter or _reporter.reporter()
        school = school_id if school_id is not None else self._reporter.school_id
        self._subject = Subject("jobs", self.id, school)
        self._state = JobState({"job_type": self.type})
        self._stop_on_cancel = stop_on_cancel
        self._is_started = self._is_ended = False
        self._limits = {name: value for name, value in (("stall_after_secs", stall_after_secs), ("timeout_secs", timeout_secs)) if value is not None}
        self._metadata = dict(metadata or {})
        if title is not None:
            self._metadata["title"] = title
        self._message = message
        self._tokens: list[contextvars.Token[Job | None]] = []
        self._state.start.update(self._texts(message, self._metadata))

    # What the server has answered.

    @property
    def snapshot(self) -> Body:
        """The job as the server has last answered it; before the first answer, only its `job_id` and `job_type`."""
        return self._state.event or {"job_id": self.id, "job_type": self.type, "status": None, "attempt": None, "cancel_requested": False}

    @property
    def cancel_requested(self) -> bool:
        """Whether the work should stop: a user has asked for it or has cancelled the job, or another worker has taken it over."""
        event = self._state.event or {}
        cancelled = event.get("status") == "cancelled" and not self._is_ended
        return bool(event.get("cancel_requested")) or cancelled or self._state.is_superseded

    def check(self) -> None:
        """Raises `Cancelled` if the work should stop."""
        if self.cancel_requested:
            raise Cancelled("the job was taken over by another worker" if self._state.is_superseded else "the job was cancelled")

    # Reports.

    def enqueue(self, message: str | None = None, metadata: Mapping[str, Any] | None = None) -> "Job":
        """Makes the job known as waiting for a worker."""
        self._create("queued", message, metadata)
        return self

    def start(self, message: str | None = None, metadata: Mapping[str, Any] | None = None, *, restart: bool = True) -> "Job":
        """The work begins. A job of the same id that has failed gets a new attempt, unless `restart` is false."""
        if self._limits:
            self._create("pending", message, metadata)
        self._is_started, self._is_ended = True, False
        body = {"job_type": self.type, **self._texts(message or self._message, {**self._metadata, **(metadata or {})})}
        # Answers to reports of an earlier attempt say nothing about this one.
        self._state = JobState(body)
        self._send("start", body, restarts=restart)
        return self

    def update(self, progress: float | None = None, message: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """Reports progress (0 to 100), a message, and metadata, which is merged key by key. Only the newest report is sent if several wait."""
        if self._is_ended or (self._state.event or {}).get("status") in FINISHED:
            return
        body = {"job_type": self.type, **self._texts(message, metadata)}
        percent = number(progress)
        if percent is not None:
            body["progress"] = min(max(percent, 0.0), 100.0)
        self._send("progress", body, is_tick=True)

    def complete(self, result: Any = None, message: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """The work is done."""
        body = self._texts(message, metadata)
        if result is not None:
            body["result"] = jsonable(result)
        self._end("complete", body)

    def fail(self, error: object, code: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """The work has failed, with an exception or a text."""
        name = type(error).__name__ if isinstance(error, BaseException) else "error"
        message = text(error).strip() or name
        body = {"error": {"code": cut(code or name, CODE_MAX_BYTES), "message": cut(message, MESSAGE_MAX_BYTES)}}
        self._end("fail", {**body, **self._texts(None, metadata)})

    def cancel(self, message: str | None = None) -> None:
        """The work has stopped before its end, on request or because of its process."""
        self._end("cancel", {"force": True, **self._texts(message, None)})

    def retry(self, message: str | None = None) -> None:
        """The work, which has failed, waits for another attempt."""
        self._is_ended = False
        self._send("retry", self._texts(message, None))

    def track(self, items: "Union[Iterable[_T], AsyncIterable[_T]]", total: int | None = None, span: tuple[float, float] = (0, 100)) -> "Tracked[_T]":
        """Returns the items, for `for` or `async for`, and reports how many of them are done. `total` is their number if they have no `len()`.
        `span` is the part of the job's progress that they make up. Raises `Cancelled` if a user cancels the job."""
        return Tracked(self, items, total, span)

    # As a context manager.

    def __enter__(self) -> "Job":
        if not self._is_started:
            self.start()
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._tokens:
            with contextlib.suppress(ValueError):
                _current.reset(self._tokens.pop())
        if not self._is_ended:
            self._end_with(error)

    async def __aenter__(self) -> "Job":
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__(kind, error, trace)

    def _end_with(self, error: BaseException | None) -> None:
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.complete()
        elif isinstance(error, (Cancelled, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)):
            self.cancel(text(error) or "Stopped")
        else:
            self.fail(error, metadata={"traceback": traceback_of(error)})

    # Details.

    def _create(self, status: str, message: str | None, metadata: Mapping[str, Any] | None) -> None:
        texts = self._texts(message or self._message, {**self._metadata, **(metadata or {})})
        body = {"job_type": self.type, "status": status, **self._limits, **texts}
        self._send("create", body, expected=frozenset({"already-exists"}))

    def _texts(self, message: str | None, metadata: Mapping[str, Any] | None) -> Body:
        body: Body = {}
        if message is not None:
            body["message"] = cut(message, MESSAGE_MAX_BYTES)
        if metadata:
            body["metadata"] = jsonable(metadata)
        return body

    def _end(self, verb: str, body: Body) -> None:
        self._is_ended = True
        self._send(verb, body)

    def _send(self, verb: str, body: Body, is_tick: bool = False, expected: frozenset[ProblemCode] = frozenset(), restarts: bool = False) -> None:
        self._reporter.report(Report(self._subject, verb, body, is_tick, self._state, (), expected, restarts))


_plain_type = job_type


class Tracked(Generic[_T]):
    """Items whose number is reported as they are taken."""

    def __init__(self, job: Job, items: "Union[Iterable[_T], AsyncIterable[_T]]", total: int | None, span: tuple[float, float]) -> None:
        self._job, self._items = job, items
        self._total = len(items) if total is None and isinstance(items, Sized) else total
        self._span = span
        self._done = 0
        self._told_at = -TRACK_SECS

    def __len__(self) -> int:
        if self._total is None:
            raise TypeError("the number of items is not known; pass `total`")
        return self._total

    def __iter__(self) -> Iterator[_T]:
        for item in cast("Iterable[_T]", self._items):
            yield item
            self._count()
        self._tell()

    async def __aiter__(self) -> AsyncIterator[_T]:
        async for item in cast("AsyncIterable[_T]", self._items):
            yield item
            self._count()
        self._tell()

    def _count(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told_at >= TRACK_SECS:
            self._told_at = now
            self._tell()
            if self._job._stop_on_cancel:
                self._job.check()

    def _tell(self) -> None:
        if not self._total:
            self._job.update(message=f"{self._done}")
            return
        low, high = self._span
        self._job.update(low + (high - low) * min(self._done / self._total, 1.0), f"{self._done}/{self._total}")


def traceback_of(error: BaseException) -> str:
    """Returns the end of an exception's traceback."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return lines if len(lines.encode("utf-8", "replace")) <= TRACEBACK_MAX_BYTES else "…" + lines[-TRACEBACK_MAX_BYTES // 4 :]


def job(
    job_type: str,
    *,
    id: object = None,
    title: str | None = None,
    message: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    school_id: int | None = None,
    stall_after_secs: int | None = None,
    timeout_secs: int | None = None,
    stop_on_cancel: bool = True,
) -> Job:
    """Returns a job, for `with` or `async with`:

    >>> with tidings.job("import", title="Students") as job:
    ...     for row in job.track(rows):
    ...         save(row)
    """
    return Job(
        job_type,
        id=id,
        title=title,
        message=message,
        metadata=metadata,
        school_id=school_id,
        stall_after_secs=stall_after_secs,
        timeout_secs=timeout_secs,
        stop_on_cancel=stop_on_cancel,
    )


def current_job() -> Job | None:
    """Returns the job in whose `with` block, or task, this code runs."""
    return _current.get()
