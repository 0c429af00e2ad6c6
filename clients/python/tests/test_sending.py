"""When the thread of a reporter tries again."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from support import Server, reporting, wait_for

import tidings


def failing(times: int) -> tuple[list[str], Callable[[], httpx.Client]]:
    """Returns a maker of clients that fails so many times, and its calls."""
    calls: list[str] = []

    def client() -> httpx.Client:
        calls.append("called")
        if len(calls) <= times:
            raise ValueError("an odd setting of a proxy")
        return httpx.Client()

    return calls, client


def test_reports_are_sent_once_the_connection_can_be_set_up(server: Server) -> None:
    calls, client = failing(3)
    with reporting(server.url, client=client) as reporter:
        job = tidings.Job("import", reporter=reporter).start()
        wait_for(lambda: reporter.waiting == 0)
        job.complete()
        assert reporter.flush(10)
    assert len(calls) == 4
    assert server.story(job.id) == [("in_progress", 0.0), ("completed", 100.0)]


def test_reports_do_not_shorten_the_pause_after_a_failure(server: Server) -> None:
    """To read the certificates for each report would take the time of the work."""
    calls, client = failing(1)
    with reporting(server.url, client=client, backoff=lambda: tidings.Backoff(3600, 3600)) as reporter:
        job = tidings.Job("import", reporter=reporter).start()
        wait_for(lambda: reporter.is_failing)
        for percent in range(100):
            job.update(percent)
            thread = reporter._thread
            assert thread is not None
            assert thread.is_alive()
        assert len(calls) == 1
        # The end of the process is worth another try.
        job.complete()
        assert reporter.flush(10)
    assert len(calls) == 2
    assert (server.job(job.id) or {})["status"] == "completed"
