"""Airflow task instances and DAG runs as jobs. In a file of the plugins folder:

>>> from tidings.integrations.airflow import TidingsPlugin

A DAG run is the job `<dag>:<run>`, and a task instance `<dag>:<run>:<task>` (and `:<index>` of a mapped task).
"""

from __future__ import annotations

import sys
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

from .._job import Job
from ._tasks import flush_run

# Whether this process has run a task. The scheduler and the API server announce ends, too, and must not wait for them to be sent.
_runs_tasks = False


def _task(task_instance: Any) -> Job:
    parts = [str(task_instance.dag_id), str(task_instance.run_id), str(task_instance.task_id)]
    index = getattr(task_instance, "map_index", -1)
    if index is not None and index >= 0:
        parts.append(str(index))
    return Job("airflow.task", id=":".join(parts), title=f"{parts[0]} · {parts[2]}", metadata={"try": getattr(task_instance, "try_number", None)})


def _run(dag_run: Any) -> Job:
    return Job("airflow.dag", id=f"{dag_run.dag_id}:{dag_run.run_id}", title=str(dag_run.dag_id))


def _end_of_task(task_instance: Any) -> None:
    # The process of a task instance ends without `atexit`. In Airflow 3, only that process has task instances of the SDK; a task whose templates cannot
    # be rendered fails there without `on_task_instance_running`.
    if _runs_tasks or type(task_instance).__module__.startswith("airflow.sdk."):
        flush_run()


@hookimpl
def on_task_instance_running(previous_state: Any, task_instance: Any) -> None:
    global _runs_tasks
    _runs_tasks = True
    _task(task_instance).start()


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    _task(task_instance).complete()
    _end_of_task(task_instance)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any = None) -> None:
    _task(task_instance).fail(error or "The task failed")
    _end_of_task(task_instance)


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    _task(task_instance).cancel("Skipped")
    _end_of_task(task_instance)


@hookimpl
def on_dag_run_running(dag_run: Any, msg: str) -> None:
    _run(dag_run).start(msg or None)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    _run(dag_run).complete(message=msg or None)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    _run(dag_run).fail(msg or "The run failed")


class TidingsPlugin(AirflowPlugin):
    """Registers the hooks of this module."""

    name = "tidings"
    listeners = [sys.modules[__name__]]  # noqa: RUF012
