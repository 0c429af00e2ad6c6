"""Celery tasks as jobs, under the ids of the tasks.

For all tasks of an application, in the module that creates it:

>>> tidings.integrations.celery.install()

Or for single tasks:

>>> @app.task(base=TidingsTask, bind=True)
... def import_rows(self, rows):
...     for row in self.job.track(rows):
...         save(row)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import celery
from celery import signals
from celery.exceptions import Ignore, Reject

from .._job import Job, current_job
from . import _tasks

_runs = _tasks.Runs()
_selects: Callable[[str], bool] | None = None


def install(select: Callable[[str], bool] = lambda name: True) -> None:
    """Reports every task whose name `select` accepts: queued when it is sent, and its start, retries and end in the worker. Tasks of
    `TidingsTask` are reported in any case. Call it in the processes that send tasks, and in the workers."""
    global _selects
    _selects = select
    signals.before_task_publish.connect(_sent, weak=False, dispatch_uid="tidings")
    signals.task_prerun.connect(_started, weak=False, dispatch_uid="tidings")
    signals.task_success.connect(_succeeded, weak=False, dispatch_uid="tidings")
    signals.task_failure.connect(_failed, weak=False, dispatch_uid="tidings")
    signals.task_retry.connect(_retried, weak=False, dispatch_uid="tidings")
    signals.task_revoked.connect(_revoked, weak=False, dispatch_uid="tidings")


def _is_reported(name: str) -> bool:
    return _selects is not None and _selects(name)


class TidingsTask(celery.Task):
    """The base of tasks that report progress by `self.job`."""

    abstract = True

    @property
    def job(self) -> Job:
        """The job of the present run."""
        return _runs.job(self.request.id or "") or current_job() or _tasks.nobody()

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        if not _is_reported(self.name):
            _runs.started(task_id, self.name, self.request.retries)
        super().before_start(task_id, args, kwargs)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        if not _is_reported(self.name):
            _runs.completed(task_id, self.name, retval)
        super().on_success(retval, task_id, args, kwargs)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        if not _is_reported(self.name):
            _runs.failed(task_id, self.name, exc, str(einfo))
        super().on_failure(exc, task_id, args, kwargs, einfo)

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        if not _is_reported(self.name):
            _runs.waits(task_id, self.name, exc)
        super().on_retry(exc, task_id, args, kwargs, einfo)


def _sent(sender: Any = None, headers: Any = None, **_: Any) -> None:
    # A task that is retried is sent again under the same id.
    if headers and headers.get("id") and not headers.get("retries") and _is_reported(str(sender)):
        _runs.queued(headers["id"], str(sender))


def _started(task_id: str, task: Any, **_: Any) -> None:
    if _is_reported(task.name):
        _runs.started(task_id, task.name, task.request.retries)


def _succeeded(sender: Any, result: Any, **_: Any) -> None:
    if _is_reported(sender.name):
        _runs.completed(sender.request.id, sender.name, result)


def _failed(sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    if _is_reported(sender.name) and not isinstance(exception, (Ignore, Reject)):
        _runs.failed(task_id, sender.name, exception, str(einfo) if einfo else None)


def _retried(sender: Any, request: Any, reason: Any, **_: Any) -> None:
    if _is_reported(sender.name):
        _runs.waits(request.id, sender.name, reason)


def _revoked(sender: Any, request: Any, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    if _is_reported(sender.name):
        reason = "Expired" if expired else "Terminated" if terminated else "Revoked"
        _runs.cancelled(request.id, sender.name, reason)


@signals.worker_process_shutdown.connect(weak=False, dispatch_uid="tidings")
def _ended(**_: Any) -> None:
    # The processes of a pool end without `atexit`.
    _tasks.flush_run()
