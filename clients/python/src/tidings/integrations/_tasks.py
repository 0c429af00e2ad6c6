"""What task queues have in common: a job for each run of a task, under the task's id."""

from __future__ import annotations

import contextvars
import threading
from collections import OrderedDict
from typing import Any

from .._job import Job, _current, traceback_of
from .._reporter import reporter

# How many runs are remembered whose end was never announced.
RUNS_MAX = 1_000


class Runs:
    """The runs of this process. All methods are called by the hooks of a queue, so none raises an error."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, tuple[Job, contextvars.Token[Job | None] | None]] = OrderedDict()
        self._lock = threading.Lock()

    def queued(self, task_id: str, name: str, metadata: dict[str, Any] | None = None) -> None:
        Job(name, id=task_id, title=name, metadata=metadata).enqueue()

    def started(self, task_id: str, name: str, retries: int = 0) -> Job:
        job = Job(name, id=task_id, title=name).start()
        if retries:
            job.update(message=f"Try {retries + 1}", metadata={"retries": retries})
        token = _current.set(job)
        with self._lock:
            self._jobs[task_id] = job, token
            while len(self._jobs) > RUNS_MAX:
                self._jobs.popitem(last=False)
        return job

    def job(self, task_id: str) -> Job | None:
        with self._lock:
            found = self._jobs.get(task_id)
        return found[0] if found else None

    def completed(self, task_id: str, name: str, result: Any = None) -> None:
        job = self._end(task_id, name)
        if not job._is_ended:
            job.complete(result)

    def failed(self, task_id: str, name: str, error: object, trace: str | None = None) -> None:
        job = self._end(task_id, name)
        if not job._is_ended:
            found = trace or (traceback_of(error) if isinstance(error, BaseException) else None)
            job.fail(error, metadata={"traceback": found} if found else None)

    def waits(self, task_id: str, name: str, reason: object) -> None:
        """A run has failed, and another follows, perhaps before the last reports of this process arrive. So it joins the present attempt: if it began
        a new one, late reports could end that."""
        self._end(task_id, name).update(message=f"Waits to retry: {reason}")

    def cancelled(self, task_id: str, name: str, reason: str) -> None:
        job = self._end(task_id, name)
        if not job._is_ended:
            job.cancel(reason)

    def _end(self, task_id: str, name: str) -> Job:
        with self._lock:
            job, token = self._jobs.pop(task_id, (None, None))
        if token is not None:
            try:
                _current.reset(token)
            except ValueError:
                # The end was announced in another context.
                _current.set(None)
        return job or Job(name, id=task_id, title=name)


def nobody() -> Job:
    """Returns a job that reports nothing, for a task that is called as a plain function."""
    job = Job("none")
    job._is_ended = True
    return job


def flush_run() -> None:
    """Sends what is left before a process that runs no `atexit` ends. A server that has not answered meanwhile gets a single try."""
    found = reporter()
    found.flush(patient=found.was_reached)
