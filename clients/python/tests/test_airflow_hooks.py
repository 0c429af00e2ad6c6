"""The hooks of the Airflow listener, called as Airflow calls them. Airflow itself is not needed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support import Server, token

import tidings


@pytest.fixture
def hooks(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The listener in a process that has run no task."""
    if importlib.util.find_spec("airflow") is None:
        listeners, plugins = ModuleType("airflow.listeners"), ModuleType("airflow.plugins_manager")
        listeners.hookimpl = lambda hook: hook  # type: ignore[attr-defined]
        plugins.AirflowPlugin = object  # type: ignore[attr-defined]
        for module in (ModuleType("airflow"), listeners, plugins):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "tidings.integrations.airflow", raising=False)
    found = importlib.import_module("tidings.integrations.airflow")
    tidings.configure(server.url, token())
    yield found
    tidings.reporter().close()
    sys.modules.pop("tidings.integrations.airflow", None)


def flushes(hooks: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(hooks, "flush_run", lambda: found.append("flushed"))
    return found


def test_only_the_process_of_a_task_waits_until_its_end_is_sent(hooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler announces the end of a task whose process died, and must go on at once."""
    flushed = flushes(hooks, monkeypatch)
    task = SimpleNamespace(dag_id="weekly", run_id="one", task_id="load", map_index=-1, try_number=1)
    hooks.on_task_instance_failed("running", task, "The heartbeat timed out")
    assert flushed == []
    hooks.on_task_instance_running("queued", task)
    hooks.on_task_instance_success("running", task)
    assert flushed == ["flushed"]


@pytest.mark.parametrize("end", ["success", "failed", "skipped"])
def test_a_task_that_ends_before_it_runs_waits_until_its_end_is_sent(hooks: Any, server: Server, end: str) -> None:
    """Airflow 3 renders the templates of a task before it announces that the task runs. The process ends without `atexit`."""
    runtime = type("RuntimeTaskInstance", (SimpleNamespace,), {"__module__": "airflow.sdk.execution_time.task_runner"})
    task = runtime(dag_id="weekly", run_id=end, task_id="render", map_index=-1, try_number=1)
    getattr(hooks, f"on_task_instance_{end}")("running", task)
    assert tidings.reporter().waiting == 0
    job = server.job(f"weekly:{end}:render") or {}
    assert job["status"] == {"success": "completed", "failed": "failed", "skipped": "cancelled"}[end]
