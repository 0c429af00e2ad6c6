"""The integrations with the real packages: real workers, brokers and bars, and what the server knows afterwards."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Server, needs, token, wait_for

import tidings


@pytest.fixture
def configured(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Names the server in the environment, for this process and for workers."""
    monkeypatch.setenv("TIDINGS_URL", server.url)
    monkeypatch.setenv("TIDINGS_TOKEN", token())
    tidings.configure()
    yield server
    tidings.reporter().close()


def finished(server: Server, job_id: str) -> dict[str, Any]:
    return wait_for(lambda: job if (job := server.job(job_id)) and job["status"] in ("completed", "failed", "cancelled") else None, 40)


def statuses(server: Server, job_id: str) -> list[tuple[str, int]]:
    """The changes of status, with the attempt of each."""
    found: list[tuple[str, int]] = []
    for event in server.log():
        entry = (event.get("status"), event.get("attempt"))
        if event.get("job_id") == job_id and (not found or found[-1] != entry):
            found.append(entry)
    return found


# tqdm


def only_job(server: Server, job_type: str) -> dict[str, Any]:
    jobs = server.get(f"/api/jobs?job_type={job_type}")["jobs"]
    assert len(jobs) == 1
    return jobs[0]


@pytest.mark.parametrize("disable", [False, True, None])
def test_a_bar_is_a_job_whether_it_is_shown_or_not(configured: Server, disable: bool | None) -> None:
    from tidings.integrations.tqdm import tqdm

    shown, job_type = io.StringIO(), f"bar-{disable}"
    with contextlib.redirect_stderr(shown):
        assert list(tqdm(range(50), desc="Students", job_type=job_type, disable=disable, mininterval=0)) == list(range(50))
    assert ("Students: 100%" in shown.getvalue()) == (disable is False)
    assert tidings.flush(10)
    job = only_job(configured, job_type)
    assert (job["status"], job["progress"], job["metadata"]["title"], job["message"]) == ("completed", 100.0, "Students", "Completed")
    assert "50/50 it" in [event["message"] for event in configured.log() if event.get("job_id") == job["job_id"]]


def test_a_bar_that_stops_early_is_cancelled_and_one_with_an_error_fails(configured: Server) -> None:
    from tidings.integrations.tqdm import tqdm, trange

    for _ in trange(100, job_type="bar-break", disable=True):
        break
    with pytest.raises(KeyError), tqdm(total=10, job_type="bar-error", disable=True) as bar:
        bar.update(3)
        raise KeyError("row")
    with tidings.job("outer") as job:
        list(trange(10, job_type="bar-inner", disable=True))
    assert tidings.flush(10)
    assert only_job(configured, "bar-break")["status"] == "cancelled"
    failed = only_job(configured, "bar-error")
    assert (failed["status"], failed["error"]["code"], failed["progress"]) == ("failed", "KeyError", 30.0)
    assert configured.get("/api/jobs?job_type=bar-inner")["jobs"] == []
    assert (configured.job(job.id) or {})["status"] == "completed"


# logging


def test_log_records_become_messages_and_warnings_stay(configured: Server) -> None:
    from tidings.integrations.logging import JobHandler

    logger, handler = logging.getLogger("importer"), JobHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.info("nobody's")
    with tidings.job("logged") as job:
        logger.warning("Row %d is empty", 7)
        logger.debug("not told")
        logger.info("Reading rows")
        assert tidings.flush(10)
        known = configured.job(job.id) or {}
        assert (known["message"], known["metadata"]) == ("Reading rows", {"warning": "Row 7 is empty"})
    logger.removeHandler(handler)


# Celery and RQ


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert shutil.which("redis-server"), "install redis-server"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""], cwd=folder, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    wait_for(answers)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(20)


CELERY_APP = """
import os, signal
from celery import Celery
import tidings
from tidings.integrations.celery import TidingsTask, install

app = Celery("work", broker=os.environ["REDIS"], backend=os.environ["REDIS"])
app.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
install(lambda name: not name.endswith("quiet"))

@app.task
def add(a, b):
    for _ in tidings.current_job().track(range(10)):
        pass
    return a + b

@app.task(base=TidingsTask, bind=True, name="work.quiet")
def based(self, rows):
    for row in self.job.track(rows):
        self.job.update(metadata={"row": row})
    return len(rows)

@app.task
def broken():
    raise ValueError("no rows")

@app.task(bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0, exc=OSError("busy"))
    return "at last"

@app.task
def killed():
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def celery(configured: Server, redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = f"work_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(CELERY_APP)
    monkeypatch.setenv("REDIS", redis)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = [sys.executable, "-m", "celery", "-A", module, "worker", "--pool=prefork", "--concurrency=2", "--without-mingle", "--without-gossip"]
    output = (tmp_path / "output").open("w")
    worker = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "C_FORCE_ROOT": "1"}, stdout=output, stderr=subprocess.STDOUT)
    yield __import__(module)
    worker.terminate()
    worker.wait(40)
    output.close()


def test_celery_tasks_are_jobs_from_the_queue_to_their_end(configured: Server, celery: Any) -> None:
    # Sent first, so that the rest runs while its process is replaced.
    killed = celery.killed.delay()
    added = celery.add.delay(1, 2)
    assert added.get(timeout=40) == 3
    job = finished(configured, added.id)
    assert (job["status"], job["result"], job["job_type"][-4:], job["metadata"]["title"][-4:]) == ("completed", 3, ".add", ".add")
    assert [status for status, _ in statuses(configured, added.id)][-2:] == ["in_progress", "completed"]

    based = celery.based.delay([1, 2, 3])
    assert based.get(timeout=40) == 3
    job = finished(configured, based.id)
    assert (job["status"], job["metadata"]["row"], job["job_type"]) == ("completed", 3, "work.quiet")

    broken = celery.broken.delay()
    job = finished(configured, broken.id)
    assert (job["status"], job["error"]) == ("failed", {"code": "ValueError", "message": "no rows"})
    assert "raise ValueError" in job["metadata"]["traceback"]

    flaky = celery.flaky.delay()
    assert flaky.get(timeout=40) == "at last"
    job = finished(configured, flaky.id)
    assert (job["status"], job["result"], job["metadata"]["retries"]) == ("completed", "at last", 2)
    assert {status for status, _ in statuses(configured, flaky.id)} <= {"queued", "in_progress", "completed"}

    job = finished(configured, killed.id)
    assert (job["status"], job["error"]["code"]) == ("failed", "WorkerLostError")

    # A plain call is no job.
    before = len(configured.log())
    assert celery.based([1]) == 1
    assert tidings.flush(10)
    assert len(configured.log()) == before


RQ_FUNCTIONS = """
import tidings

def add(a, b):
    for _ in tidings.current_job().track(range(5)):
        pass
    return a + b

def broken():
    raise ValueError("no rows")

def flaky(counter):
    from rq import get_current_job
    job = get_current_job()
    job.meta["tries"] = job.meta.get("tries", 0) + 1
    job.save_meta()
    if job.meta["tries"] < 2:
        raise OSError("busy")
    return "at last"
"""


def test_rq_jobs_are_jobs_from_the_queue_to_their_end(configured: Server, redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redis import Redis
    from rq import Queue, Retry

    from tidings.integrations.rq import TidingsJob

    module = f"functions_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(RQ_FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    functions = __import__(module)
    queue = Queue(f"q{uuid.uuid4().hex}", connection=Redis.from_url(redis), job_class=TidingsJob)
    added = queue.enqueue(functions.add, 1, 2)
    broken = queue.enqueue(functions.broken)
    flaky = queue.enqueue(functions.flaky, 1, retry=Retry(max=2))
    assert tidings.flush(10)
    assert (configured.job(added.id) or {})["status"] == "queued"
    command = [Path(sys.executable).with_name("rq"), "worker", "--burst", "--url", redis, "--job-class", "tidings.integrations.rq.TidingsJob", queue.name]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    job = configured.job(added.id) or {}
    assert (job["status"], job["result"], job["job_type"]) == ("completed", 3, f"{module}.add")
    assert statuses(configured, added.id) == [("queued", 1), ("in_progress", 1), ("completed", 1)]
    job = configured.job(broken.id) or {}
    assert (job["status"], job["error"]) == ("failed", {"code": "ValueError", "message": "no rows"})
    job = configured.job(flaky.id) or {}
    assert (job["status"], job["result"]) == ("completed", "at last")
    assert statuses(configured, flaky.id) == [("queued", 1), ("in_progress", 1), ("completed", 1)]


# Django


DJANGO = """
import django
from django.conf import settings

settings.configure(TASKS={"default": {"BACKEND": "PACKAGE.backends.immediate.ImmediateBackend"}}, INSTALLED_APPS=APPLICATIONS)
django.setup()
from PACKAGE import task
import tidings
from tidings.integrations.django import install

install()

@task()
def add(a, b):
    for _ in tidings.current_job().track(range(5)):
        pass
    return a + b

@task()
def broken():
    raise ValueError("no rows")

print(add.enqueue(1, 2).id)
print(broken.enqueue().id)
"""


@pytest.mark.parametrize("package", ["django_tasks", "django.tasks"])
def test_django_tasks_are_jobs(configured: Server, tmp_path: Path, package: str) -> None:
    if package == "django.tasks" and sys.version_info < (3, 12):
        pytest.skip("Django 6, which has django.tasks, needs Python 3.12")
    needs(package)
    (tmp_path / "djangowork.py").write_text(DJANGO.replace("PACKAGE", package).replace("APPLICATIONS", str(["django_tasks"] if package == "django_tasks" else [])))
    command = [sys.executable, "-c", "import djangowork"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    added, broken = done.stdout.split()
    job = configured.job(added) or {}
    assert (job["status"], job["result"], job["job_type"]) == ("completed", 3, "djangowork.add")
    assert statuses(configured, added) == [("queued", 1), ("in_progress", 1), ("completed", 1)]
    job = configured.job(broken) or {}
    assert (job["status"], job["error"]) == ("failed", {"code": "ValueError", "message": "ValueError: no rows"})
