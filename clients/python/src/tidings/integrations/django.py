"""Django tasks as jobs, under the ids of their results: Django 6's `django.tasks`, or its backport `django-tasks`.

Call `install()` in `AppConfig.ready`. Within a task, `tidings.current_job()` is the job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import _tasks

_runs = _tasks.Runs()
_selects: Callable[[str], bool] = bool


def install(select: Callable[[str], bool] = lambda name: True) -> None:
    """Reports every task whose name (`app.tasks.import_rows`) `select` accepts."""
    global _selects
    _selects = select
    found = False
    for name in ("django.tasks.signals", "django_tasks.signals"):
        try:
            signals: Any = __import__(name, fromlist=["task_started"])
        except ImportError:
            continue
        found = True
        signals.task_enqueued.connect(_enqueued, weak=False, dispatch_uid="tidings")
        signals.task_started.connect(_started, weak=False, dispatch_uid="tidings")
        signals.task_finished.connect(_finished, weak=False, dispatch_uid="tidings")
    if not found:
        raise ImportError("Django has no tasks: use Django 6 or install `django-tasks`")


def _name(result: Any) -> str:
    return str(getattr(result.task, "module_path", None) or result.task.name)


def _enqueued(sender: Any, task_result: Any, **_: Any) -> None:
    if _selects(_name(task_result)):
        _runs.queued(task_result.id, _name(task_result), {"queue": task_result.task.queue_name})


def _started(sender: Any, task_result: Any, **_: Any) -> None:
    if _selects(_name(task_result)):
        _runs.started(task_result.id, _name(task_result))


def _finished(sender: Any, task_result: Any, **_: Any) -> None:
    name = _name(task_result)
    if not _selects(name):
        return
    if str(getattr(task_result.status, "value", task_result.status)).upper() in ("SUCCESSFUL", "SUCCEEDED"):
        _runs.completed(task_result.id, name, task_result.return_value)
        return
    errors = list(getattr(task_result, "errors", None) or [])
    last = errors[-1] if errors else None
    code = str(getattr(last, "exception_class_path", "error")).rpartition(".")[2]
    trace = str(getattr(last, "traceback", "") or "")
    message = trace.strip().rpartition("\n")[2] or code
    job = _runs.job(task_result.id)
    if job is not None:
        job.fail(message, code=code, metadata={"traceback": trace[-2000:]} if trace else None)
    _runs.failed(task_result.id, name, message)
