"""Reports against a real server: what it knows in the end, and what the work notices of its failures."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import multiprocessing
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import Proxy, Server, reporting, token, wait_for

import tidings
from tidings import _outbox, _reporter


@pytest.fixture
def reporter(server: Server) -> Iterator[tidings.Reporter]:
    with reporting(server.url) as reporter:
        yield reporter


def job_of(reporter: tidings.Reporter, job_type: str = "import", **options: Any) -> tidings.Job:
    return tidings.Job(job_type, reporter=reporter, **options)


def test_a_block_reports_its_start_progress_and_end(server: Server, reporter: tidings.Reporter) -> None:
    with job_of(reporter, title="Students", metadata={"source": "csv"}) as job:
        assert tidings.current_job() is job
        rows = list(job.track(["a", "b", "c", "d"]))
    assert tidings.current_job() is None
    assert rows == ["a", "b", "c", "d"]
    assert reporter.flush()
    known = server.job(job.id)
    assert known is not None
    assert (known["status"], known["progress"], known["job_type"], known["attempt"]) == ("completed", 100.0, "import", 1)
    assert known["metadata"] == {"title": "Students", "source": "csv"}
    assert server.story(job.id)[0] == ("in_progress", 0.0)


def test_an_asynchronous_block_reports_the_same(server: Server, reporter: tidings.Reporter) -> None:
    async def rows() -> Any:
        for row in range(3):
            yield row

    async def work() -> tidings.Job:
        async with job_of(reporter) as job:
            assert [row async for row in job.track(rows(), total=3)] == [0, 1, 2]
            job.update(message="almost")
            job.complete({"rows": 3})
        return job

    job = asyncio.run(work())
    assert reporter.flush()
    known = server.job(job.id)
    assert known is not None
    assert (known["status"], known["result"]) == ("completed", {"rows": 3})


def test_an_exception_fails_the_job_and_is_raised_unchanged(server: Server, reporter: tidings.Reporter) -> None:
    with pytest.raises(ZeroDivisionError), job_of(reporter) as job:
        job.update(40)
        1 / 0
    assert reporter.flush()
    known = server.job(job.id)
    assert known is not None
    assert (known["status"], known["error"]) == ("failed", {"code": "ZeroDivisionError", "message": "division by zero"})
    assert "1 / 0" in known["metadata"]["traceback"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), tidings.Cancelled("enough")])
def test_an_interruption_cancels_the_job(server: Server, reporter: tidings.Reporter, error: BaseException) -> None:
    with pytest.raises(type(error)), job_of(reporter) as job:
        raise error
    assert reporter.flush()
    assert (server.job(job.id) or {})["status"] == "cancelled"


def test_a_cancel_request_stops_tracked_work_and_is_confirmed(server: Server, reporter: tidings.Reporter) -> None:
    done = 0
    with pytest.raises(tidings.Cancelled), job_of(reporter) as job:
        assert reporter.flush()
        server.post(f"/api/jobs/{job.id}/cancel", {})
        for _ in job.track(iter(int, 1)):
            done += 1
            wait_for(lambda: reporter.waiting == 0)
    assert reporter.flush()
    assert (server.job(job.id) or {})["status"] == "cancelled"


def test_the_end_of_a_job_is_never_lost_because_of_what_it_contains(server: Server, reporter: tidings.Reporter) -> None:
    loop: dict[str, Any] = {"nan": float("nan"), 7: {1, 2}, "big": 10**40, "when": time.gmtime, "text": "\ud800\u0000"}
    loop["loop"] = loop

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    with job_of(reporter, "a type/with ödd letters", id="..", title="x" * 10_000) as odd:
        odd.update(float("inf"), message="m" * 10_000, metadata={**loop, "odd": Odd()})
        odd.complete(loop)
    with job_of(reporter) as large:
        large.complete("y" * 1_000_000, metadata={"much": "z" * 100_000})
    with job_of(reporter) as failed:
        failed.fail("e" * 100_000, code="c" * 1_000)
    assert reporter.flush()
    assert [(server.job(job.id) or {}).get("status") for job in (odd, large, failed)] == ["completed", "completed", "failed"]


def test_reports_carry_the_attempt_so_that_a_lost_worker_does_no_harm(server: Server, reporter: tidings.Reporter) -> None:
    with reporting(server.url, worker="other") as other:
        lost = job_of(reporter, id="fenced").start()
        lost.update(10)
        assert reporter.flush()
        # The job is given up and taken by another worker.
        server.post("/api/jobs/fenced/fail", {"attempt": 1, "error": "lost"})
        fresh = job_of(other, id="fenced").start()
        fresh.update(20)
        assert other.flush()
        lost.update(90)
        assert reporter.flush()
        with pytest.raises(tidings.Cancelled):
            lost.check()
        lost.complete("wrong")
        assert reporter.flush()
        fresh.complete("right")
        assert other.flush()
    known = server.job("fenced")
    assert known is not None
    assert (known["attempt"], known["status"], known["result"]) == (2, "completed", "right")


def test_a_job_that_the_server_has_lost_is_reported_anew(tmp_path: Path) -> None:
    server = Server(tmp_path / "s")
    try:
        with reporting(server.url) as reporter:
            job_of(reporter, id="lost").start().fail("first try")
            again = job_of(reporter, id="lost").start()
            assert reporter.flush()
            assert again.snapshot["attempt"] == 2
            # The server comes back with another database.
            server.stop()
            (tmp_path / "s" / "data").rename(tmp_path / "old")
            server.start()
            again.update(50)
            assert reporter.flush()
            again.check()
            server.stop()
            (tmp_path / "s" / "data").rename(tmp_path / "older")
            server.start()
            again.complete("done")
            assert reporter.flush()
        known = server.job("lost") or {}
        assert (known.get("attempt"), known.get("status"), known.get("result")) == (1, "completed", "done")
    finally:
        server.stop()


def test_a_lost_job_that_another_worker_has_started_is_left_to_it(tmp_path: Path) -> None:
    server = Server(tmp_path / "s")
    # Starts the job for another worker, as soon as the server has said that it does not know it.
    taken_over = threading.Event()

    def take_over(response: httpx.Response) -> None:
        if b"not-found" in response.read() and not taken_over.is_set():
            taken_over.set()
            server.post("/api/jobs/lost/start", {"job_type": "import", "worker": "other"})

    def client() -> httpx.Client:
        return httpx.Client(event_hooks={"response": [take_over]})

    try:
        for last in (lambda job: job.complete("done"), lambda job: job.update(50)):
            taken_over.clear()
            with reporting(server.url, client=client) as reporter:
                job_of(reporter, id="lost").start().fail("first try")
                again = job_of(reporter, id="lost").start()
                assert reporter.flush()
                assert again.snapshot["attempt"] == 2
                server.stop()
                shutil.rmtree(tmp_path / "s" / "data")
                server.start()
                last(again)
                assert reporter.flush()
                assert taken_over.is_set()
                assert again.cancel_requested
                again.fail("too late")
                assert reporter.flush()
            assert server.story("lost") == [("in_progress", 0.0)], "the attempt is the other worker's"
            assert (server.job("lost") or {}).get("worker") == "other"
            server.stop()
            shutil.rmtree(tmp_path / "s" / "data")
            server.start()
    finally:
        server.stop()


def test_a_second_start_joins_the_attempt_that_is_running(server: Server, reporter: tidings.Reporter) -> None:
    server.post("/api/jobs", {"job_id": "joined", "job_type": "x", "status": "in_progress"})
    with job_of(reporter, id="joined") as job:
        assert reporter.flush()
        assert job.snapshot["attempt"] == 1
        job.update(50)
    assert reporter.flush()
    assert server.story("joined")[-1] == ("completed", 100.0)


def test_a_job_that_was_cancelled_while_it_waited_does_not_run(server: Server, reporter: tidings.Reporter) -> None:
    server.post("/api/jobs", {"job_id": "waiting", "job_type": "x"})
    server.post("/api/jobs/waiting/cancel", {})
    job = job_of(reporter, id="waiting").start()
    assert reporter.flush()
    with pytest.raises(tidings.Cancelled):
        job.check()


def test_a_job_whose_id_was_used_up_still_runs_to_its_end(server: Server, reporter: tidings.Reporter, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with job_of(reporter, id="nightly") as job:
            assert reporter.flush()
            assert list(job.track(range(3))) == [0, 1, 2]
        assert reporter.flush()
    assert "final" in caplog.text


def test_progress_is_folded_and_milestones_are_kept(server: Server) -> None:
    proxy = Proxy(lambda: server.port)
    proxy.is_refusing = True
    with reporting(proxy.url) as reporter:
        jobs = [job_of(reporter).start() for _ in range(20)]
        for step in range(5_000):
            for job in jobs[:2]:
                job.update(step / 50, f"step {step}", metadata={f"m{step % 10}": step})
        for job in jobs:
            job.complete(metadata={"end": True})
        # The start and the end of each job, and a folded tick of two of them.
        assert reporter.waiting == 42
        proxy.is_refusing = False
        assert reporter.flush(20)
        for job in jobs[:2]:
            assert server.story(job.id) == [("in_progress", 0.0), ("in_progress", 99.98), ("completed", 100.0)]
            known = server.job(job.id) or {}
            assert known["metadata"] == {**{f"m{digit}": 4_990 + digit for digit in range(10)}, "end": True}
    proxy.close()


def test_the_queue_is_bounded_and_drops_progress_before_milestones() -> None:
    with reporting("http://127.0.0.1:1", capacity=100) as reporter:
        jobs = [job_of(reporter, id=f"j{number}").start() for number in range(50)]
        for job in jobs:
            job.update(1)
        assert (reporter.waiting, reporter.dropped) == (100, 0)
        for job in jobs[:25]:
            job.complete()
        # Ends have a reserve; then the oldest ticks make room.
        assert (reporter.waiting, reporter.dropped) == (125, 0)
        for job in jobs[25:]:
            job.complete()
        assert reporter.waiting == 125
        waiting = [report.verb for queue in reporter._outbox._queues.values() for report in queue]
        assert waiting.count("start") == waiting.count("complete") == 50
        job_of(reporter, id="one too many").start()
        assert reporter.waiting == 125 - 25
        large = job_of(reporter)
        large.complete("x" * 20_000_000)
        assert reporter._outbox.bytes < 16 * 1024 * 1024


def test_metadata_that_grows_while_it_waits_is_bounded_and_arrives_in_order(server: Server) -> None:
    proxy = Proxy(lambda: server.port)
    proxy.is_refusing = True
    with reporting(proxy.url) as reporter:
        job = job_of(reporter).start()
        for row in range(1_000):
            job.update(row / 10, metadata={f"row {row}": "x" * 100, f"row {row - 50}": None})
        ticks = [report for queue in reporter._outbox._queues.values() for report in queue if report.is_tick]
        assert len(ticks) > 1
        assert max(tick.size for tick in ticks) <= _outbox.FOLD_MAX_BYTES
        assert reporter._outbox.bytes == sum(report.size for queue in reporter._outbox._queues.values() for report in queue)
        job.complete()
        proxy.is_refusing = False
        assert reporter.flush(20)
    proxy.close()
    known = server.job(job.id) or {}
    assert (known["status"], reporter.dropped) == ("completed", 0)
    assert set(known["metadata"]) == {f"row {row}" for row in range(950, 1_000)}


def test_large_metadata_of_the_same_keys_is_folded(server: Server) -> None:
    proxy = Proxy(lambda: server.port)
    proxy.is_refusing = True
    with reporting(proxy.url, flush_secs=0) as reporter:
        job = job_of(reporter).start()
        for step in range(50):
            job.update(step, metadata={"rows": f"{step}" * 20_000})
        assert reporter.waiting == 2
    proxy.close()


def test_a_server_that_is_down_slow_or_refusing_costs_the_work_nothing(server: Server) -> None:
    black_hole = Proxy(lambda: server.port)
    black_hole.is_black_hole = True
    for url, secret in (("http://127.0.0.1:1", None), (black_hole.url, None), (server.url, "not a token"), ("nonsense://", None)):
        with reporting(url, secret, request_secs=0.5, flush_secs=1) as reporter:
            started = time.perf_counter()
            with job_of(reporter) as job:
                for _ in job.track(range(20_000)):
                    pass
            assert time.perf_counter() - started < 2, url
            started = time.perf_counter()
            reporter.close()
            assert time.perf_counter() - started < 2, url
    black_hole.close()


def test_a_report_whose_answer_is_lost_takes_effect_once(server: Server) -> None:
    """The proxy passes requests on, and cuts the connection instead of the answer."""

    class Lossy(httpx.BaseTransport):
        def __init__(self) -> None:
            self.inner, self.calls = httpx.HTTPTransport(), 0

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            self.calls += 1
            response = self.inner.handle_request(request)
            if self.calls % 2:
                response.read()
                raise httpx.ReadError("cut")
            return response

    transport = Lossy()
    with reporting(server.url, client=lambda: httpx.Client(transport=transport)) as reporter:
        with job_of(reporter) as job:
            for step in (10, 20, 30):
                job.update(step)
                assert reporter.flush(20)
        assert reporter.flush(20)
    assert transport.calls > 8
    progress = [0.0, 10.0, 20.0, 30.0, 100.0]
    assert [entry[1] for entry in server.story(job.id)] == progress


def test_an_expired_token_is_replaced_by_the_callback(server: Server) -> None:
    tokens = iter([token(ttl_secs=-100), token()])
    last = ""

    def fresh() -> str:
        nonlocal last
        last = next(tokens, last)
        return last

    with reporting(server.url, fresh) as reporter:
        with job_of(reporter) as job:
            pass
        assert reporter.flush(20)
    assert (server.job(job.id) or {})["status"] == "completed"


def test_the_token_of_a_report_may_come_from_an_asynchronous_function(server: Server) -> None:
    async def fresh() -> str:
        await asyncio.sleep(0)
        return token()

    with reporting(server.url, fresh) as reporter:
        with job_of(reporter) as job:
            pass
        assert reporter.flush(20)
    assert (server.job(job.id) or {})["status"] == "completed"


@pytest.mark.parametrize("name", ["TIDINGS_SCHOOL_ID", "SSL_CERT_FILE"])
def test_a_wrong_environment_is_logged_and_the_work_goes_on(name: str) -> None:
    code = "import tidings\nwith tidings.job('x') as job:\n    print('done')\n"
    environment = {**os.environ, "TIDINGS_URL": "https://127.0.0.1:1", "TIDINGS_TOKEN": token(), name: "/none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert name in done.stderr


def test_a_batch_that_is_too_large_for_the_server_is_split(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", batch_limit_commands=3, batch_limit_bytes=262_144)
    try:
        with reporting(server.url) as reporter:
            jobs = [job_of(reporter) for _ in range(20)]
            for job in jobs:
                with job:
                    pass
            assert reporter.flush(20)
            assert all((server.job(job.id) or {})["status"] == "completed" for job in jobs)
    finally:
        server.stop()


def test_reports_of_several_schools_share_one_reporter(server: Server) -> None:
    with reporting(server.url, token(school_id=None, schools=[1, 2])) as reporter:
        for school in (1, 2):
            with tidings.Job("x", id="same", school_id=school, reporter=reporter):
                pass
        assert reporter.flush()
    assert (server.job("same", 1) or {})["school_id"] == 1
    assert (server.job("same", 2) or {})["school_id"] == 2


def test_limits_of_a_job_reach_the_server(server: Server, reporter: tidings.Reporter) -> None:
    with job_of(reporter, stall_after_secs=600, timeout_secs=700):
        pass
    job = job_of(reporter, stall_after_secs=1).start()
    assert reporter.flush()
    assert wait_for(lambda: (server.job(job.id) or {}).get("stalled"))
    job.complete()
    assert reporter.flush()


# Ends of processes


def script(server_url: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TIDINGS_URL": server_url, "TIDINGS_TOKEN": token()}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_process_sends_its_reports_before_it_ends(server: Server) -> None:
    code = "import tidings\nwith tidings.job('x', id='short') as job:\n    job.update(50)\n"
    done = script(server.url, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert (server.job("short") or {})["status"] == "completed"


def test_a_process_ends_at_once_without_a_server() -> None:
    # The first handler to be registered runs last, after the one of the client.
    code = """
import atexit, time
atexit.register(lambda: print(time.monotonic() - ended))
import tidings
with tidings.job('x') as job:
    pass
ended = time.monotonic()
"""
    done = script("http://127.0.0.1:1", code)
    assert done.returncode == 0
    assert "could not be delivered" in done.stderr
    assert float(done.stdout) < 3


def test_a_process_without_a_token_says_so_once_and_works() -> None:
    code = "import tidings\nfor _ in range(3):\n    with tidings.job('x') as job:\n        pass\nprint('done')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "done\n"
    assert done.stderr.count("there is no token") == 1


def in_child(job_id: str) -> None:
    with tidings.job("x", id=job_id):
        pass


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_sends_its_own_reports_and_none_of_its_parent(server: Server, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_URL", server.url)
    monkeypatch.setenv("TIDINGS_TOKEN", token())
    proxy = Proxy(lambda: server.port)
    proxy.is_refusing = True
    with reporting(proxy.url) as parent:
        job_of(parent, id=f"parent-{method}").start()
        wait_for(lambda: proxy.accepted > 0)
        monkeypatch.setattr(_reporter, "_default", None)
        tidings.configure(server.url, token())
        child = multiprocessing.get_context(method).Process(target=in_child, args=(f"child-{method}",))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert (server.job(f"child-{method}") or {})["status"] == "completed"
        assert server.job(f"parent-{method}") is None
        proxy.is_refusing = False
        assert parent.flush(20)
    assert server.job(f"parent-{method}") is not None
    proxy.close()


def test_a_fork_while_another_thread_reports_never_deadlocks(server: Server) -> None:
    with reporting(server.url) as reporter:
        stop = threading.Event()

        def busy() -> None:
            job = job_of(reporter).start()
            while not stop.is_set():
                job.update(50)

        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        children = []
        for number in range(20):
            child = os.fork()
            if child == 0:
                job = job_of(reporter, id=f"forked-{number}").start()
                job.complete()
                os._exit(0 if reporter.flush(20) else 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 20
        stop.set()
        for thread in threads:
            thread.join()
    assert all((server.job(f"forked-{number}") or {})["status"] == "completed" for number in range(20))


def test_the_thread_of_a_reporter_imports_nothing(server: Server) -> None:
    """A process that forks while one of its threads imports a module leaves the lock of that import to the child, which waits for it for ever."""
    code = """
import sys, tidings
before = set(sys.modules)
with tidings.job('x') as job:
    job.update(50)
assert tidings.flush(30)
print(sorted(set(sys.modules) - before))
"""
    done = script(server.url.replace("127.0.0.1", "localhost"), code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1"])
def test_the_thread_of_a_reporter_makes_no_tls_context(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL takes locks to make one. A process that forks at that moment leaves them to the child, whose own context waits for them for ever."""
    made_by: list[str] = []
    make = ssl.SSLContext.__new__

    def recorded(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        made_by.append(threading.current_thread().name)
        return make(*args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "__new__", recorded)
    ssl.create_default_context()
    assert made_by == [threading.current_thread().name]
    with reporting(url) as reporter:
        job_of(reporter).start()
        wait_for(lambda: reporter.is_failing)
    assert "tidings-reporter" not in made_by


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_certificates_are_verified(scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        with reporting(f"{scheme}://localhost:{listener.server_address[1]}") as reporter:
            job_of(reporter).start()
            wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        listener.shutdown()
    assert asked == []


def test_a_report_from_a_logging_handler_of_the_sender_itself_does_not_recur(server: Server, reporter: tidings.Reporter) -> None:
    from tidings.integrations.logging import JobHandler

    with job_of(reporter) as job:
        handler = JobHandler(job)
        root = logging.getLogger()
        root.addHandler(handler)
        level, root.level = root.level, logging.DEBUG
        try:
            logging.getLogger("work").info("Reading %s", "rows")
            assert reporter.flush(10), "requests are logged, and each record must not become another request"
        finally:
            root.removeHandler(handler)
            root.level = level
    assert reporter.flush()
    events = [event["message"] for event in server.log() if event.get("job_id") == job.id]
    assert "Reading rows" in events


def test_the_requests_of_reports_and_watches_are_not_in_the_log_of_the_work(
    server: Server, reporter: tidings.Reporter, caplog: pytest.LogCaptureFixture
) -> None:
    def requests() -> int:
        return len([record for record in caplog.records if record.name == "httpx"])

    def work() -> None:
        with job_of(reporter) as job:
            assert reporter.flush()
        for transport in ("sse", "poll"):
            messages = iter(tidings.watch(tidings.channel("jobs", job.id), url=server.url, token=token("viewer"), transports=[transport]))  # type: ignore[list-item]
            next(messages)
            messages.close()

    caplog.set_level(logging.INFO)
    work()
    assert requests() == 0
    server.get("/api/jobs")
    assert requests() == 1, "the work's own request"
    caplog.set_level(logging.DEBUG, "tidings")
    work()
    assert requests() >= 4


def test_the_line_of_a_batch_is_json_on_one_line(reporter: tidings.Reporter) -> None:
    from tidings._outbox import Report, Subject

    report = Report(Subject("jobs", "a\nb\u2028c"), "progress", {"message": "x\ny"})
    line = report.freeze("worker", 0.0)
    assert b"\n" not in line
    assert json.loads(line)["job_id"] == "a\nb\u2028c"
    assert report.freeze("another", 1.0) == line


def test_a_server_that_writes_statuses_in_upper_case_changes_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path / "upper", status_case="upper")
    try:
        with reporting(server.url) as reporter:
            first = job_of(reporter, id="again").start()
            first.fail("The disk is full")
            with job_of(reporter, id="again") as second:
                assert reporter.flush()
                assert (second.snapshot["status"], second.snapshot["attempt"]) == ("in_progress", 2), "a failed job is started again"
                server.post("/api/jobs/again/cancel", {"force": True})
                second.update(50)
                assert reporter.flush()
                with pytest.raises(tidings.Cancelled):
                    second.check()

        def status_of(**params: Any) -> str:
            messages = iter(tidings.watch("jobs", url=server.url, token=token("viewer"), **params))
            found = next(messages)["status"]
            messages.close()
            return found

        assert status_of() == "cancelled"
        assert status_of(status_case="upper") == "CANCELLED"
        for transport in ("websocket", "poll"):
            assert status_of(transports=[transport]) == "cancelled"
    finally:
        server.stop()
