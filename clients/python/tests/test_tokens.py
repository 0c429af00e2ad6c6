"""The functions that return the tokens of reports."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from support import Server, reporting, token

import tidings

# The token of the first report, or of the last one, is made after Python has shut its executors down.
AT_EXIT = """
import asyncio, atexit, os, threading, tidings

may_look_up = threading.Event()

async def fresh():
    may_look_up.wait()
    await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
    return os.environ["SECRET"]

tidings.configure(token=fresh)
job = tidings.Job("import", id=os.environ["JOB"])
"""
FIRST_AT_EXIT = "job.start().complete()\natexit.register(may_look_up.set)"
LAST_AT_EXIT = "may_look_up.set()\njob.start()\nassert tidings.flush(30)\natexit.register(job.complete)"


@pytest.mark.parametrize(("job_id", "rest"), [("first-at-exit", FIRST_AT_EXIT), ("last-at-exit", LAST_AT_EXIT)])
def test_an_asynchronous_function_may_look_up_a_host_at_the_end_of_the_process(server: Server, job_id: str, rest: str) -> None:
    environment = {**os.environ, "TIDINGS_URL": server.url, "SECRET": token(), "JOB": job_id}
    done = subprocess.run([sys.executable, "-c", AT_EXIT + rest], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (server.job(job_id) or {})["status"] == "completed"


def test_the_last_token_is_used_while_the_function_fails(server: Server) -> None:
    tokens = [token()]
    with reporting(server.url, tokens.pop) as reporter:
        job = tidings.Job("import", reporter=reporter).start()
        assert reporter.flush(20)
        job.complete()
        assert reporter.flush(20)
    assert tokens == []
    assert (server.job(job.id) or {})["status"] == "completed"


def test_a_refusal_says_that_the_function_fails(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    tokens = ["expired"]
    with reporting(server.url, tokens.pop, flush_secs=0) as reporter:
        tidings.Job("import", reporter=reporter).start()
        assert not reporter.flush(20, patient=False)
        assert "the function" not in caplog.text
        reporter._warned.clear()
        assert not reporter.flush(20, patient=False)
    assert "the function that returns the token fails: IndexError('pop from empty list')" in caplog.text


def test_an_asynchronous_function_leaves_nothing_behind(server: Server) -> None:
    cancelled: list[str] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("cancelled")
            raise

    async def fresh() -> str:
        tasks.append(asyncio.create_task(background()))
        await asyncio.to_thread(int)
        return token()

    tasks: list[asyncio.Task[None]] = []
    with reporting(server.url, fresh) as reporter:
        job = tidings.Job("import", reporter=reporter).start()
        assert reporter.flush(20)
    assert server.job(job.id) is not None
    assert cancelled == ["cancelled"] * len(tasks) != []
