"""What training loops have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._clean import jsonable, number
from .._job import Job, current_job

METRICS_MAX = 50


class Training:
    """The job of a training: a given one, that of the `with` block, or one of its own, which this completes at the end."""

    def __init__(self, job: Job | None, title: str | None) -> None:
        self._given, self._title = job, title
        self._job: Job | None = None
        self._owns = False

    def begin(self, metadata: Mapping[str, Any]) -> None:
        found = self._given or current_job()
        self._owns = found is None
        self._job = found or Job("training", title=self._title, metadata=metadata).start()

    def report(self, done: float | None, total: float | None, message: str | None, metrics: Mapping[str, Any] | None = None) -> None:
        if self._job is None:
            return
        percent = 100 * min(done / total, 1.0) if done is not None and total else None
        numbers = {}
        for name, value in list((metrics or {}).items())[:METRICS_MAX]:
            found = number(value)
            numbers[str(name)] = found if found is not None else jsonable(value)
        self._job.update(percent, message, numbers or None)

    @property
    def is_cancelled(self) -> bool:
        return self._job is not None and self._job.cancel_requested

    def end(self, error: BaseException | None = None) -> None:
        job, self._job = self._job, None
        if job is None or not self._owns or job._is_ended:
            return
        if error is None and job.cancel_requested:
            job.cancel("Stopped")
        else:
            job._end_with(error)
