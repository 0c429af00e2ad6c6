"""The drop-ins, called as existing back ends call their own objects; read at the endpoints to which their pages connect."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import inspect
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Server, token
from websockets.sync.client import ClientConnection, connect

import tidings
from tidings.dropins import (
    AlertNotifier,
    Both,
    ControlLimitsUpdatedEvent,
    DeviceStatusBroadcaster,
    EnrollmentProgressBroadcaster,
    ProcessingJobLifecycle,
    ProgressEvent,
    ProgressNotifier,
    SampleProcessedEvent,
    ViolationAcknowledged,
    ViolationCreated,
)

NOW = datetime.datetime(2026, 1, 31, 9, 30, tzinfo=datetime.timezone.utc)
Page = Callable[..., ClientConnection]
# Less than a single request would wait for its answer, times all that are made; much more than they need.
PATIENCE_SECS = 60


@pytest.fixture
def existing(tmp_path: Path) -> Iterator[Server]:
    """A server with the settings of docs/migrating-from-fastapi.md."""
    roles = '{school_admin="viewer", teacher="viewer"}'
    server = Server(tmp_path / "s", jwt_roles=roles, jwt_default_role="viewer", jwt_default_school_id=1)
    tidings.configure(server.url, token(school_id=None, schools=[1, 7, 8]))
    yield server
    tidings.reporter().close()
    server.stop()


@pytest.fixture
def page(existing: Server) -> Iterator[Page]:
    def open_page(path: str, school_id: int | None = None) -> ClientConnection:
        claims = {"school_id": school_id, "role": "school_admin"} if school_id else {}
        secret = token(**{"role": "viewer", "school_id": 1, "username": "ann", **claims})
        url = f"{existing.url.replace('http', 'ws')}{path}?token={secret}"
        return opened.enter_context(connect(url, ping_interval=None))

    with contextlib.ExitStack() as opened:
        yield open_page


def told(socket: ClientConnection, count: int, *fields: str) -> list[list[Any]]:
    messages = [json.loads(socket.recv(10)) for _ in range(count)]
    return [[message.get(field) for field in fields] for message in messages]


def test_an_enrollment_back_end_reaches_its_pages(existing: Server, page: Page, caplog: pytest.LogCaptureFixture) -> None:
    mine, other = page("/ws/enrollment", 7), page("/ws/enrollment", 8)
    assert told(mine, 1, "type") == told(other, 1, "type") == [["connected"]]
    broadcaster = EnrollmentProgressBroadcaster()

    async def enroll() -> None:
        for scan in (1, 2, 3):
            for progress, status in ((0, "ready"), (33, "placing"), (66, "capturing"), (100, "complete")):
                await broadcaster.broadcast_progress(7, "s 1", progress, status, f"{status} {scan}")
        await broadcaster.broadcast_completion(school_id=7, session_id="s 1", quality_score=87)
        await broadcaster.broadcast_cancelled(7, "s/2", message="No time")
        await broadcaster.broadcast_error(7, "s3", "Sensor is dirty")
        await broadcaster.broadcast_error(7, "s3", "Again")
        await broadcaster.broadcast_error(8, "s3", "Another school's")

    asyncio.run(enroll())
    assert tidings.flush(10)
    assert told(mine, 1, "session_id", "status") == [["s 1", "ready"]]
    statuses = ["ready", "placing", "capturing", "processing"]
    expected = [["s 1", status, f"{'complete' if status == 'processing' else status} {scan}"] for scan in (1, 2, 3) for status in statuses]
    expected.append(["s 1", "complete", "Enrollment complete"])
    assert told(mine, 13, "session_id", "status", "message") == expected
    ends = told(mine, 4, "type", "session_id", "message", "error")
    assert sorted(ends[1::2]) == [["enrollment_cancelled", "s/2", "No time", None], ["enrollment_error", "s3", None, "Sensor is dirty"]]
    assert told(other, 2, "error")[1] == ["Another school's"]
    assert "already error" in caplog.text
    assert broadcaster.get_connection_count(7) == 1


def test_sockets_are_registered_with_and_without_await(caplog: pytest.LogCaptureFixture) -> None:
    """Some back ends await these methods, and others do not."""

    async def connect_and_leave(broadcaster: EnrollmentProgressBroadcaster | DeviceStatusBroadcaster) -> None:
        broadcaster.register("socket", 7)
        broadcaster.disconnect("socket", 7)
        await broadcaster.register("socket", school_id=7)
        await broadcaster.disconnect("socket", school_id=7)
        await asyncio.create_task(broadcaster.disconnect("socket", 7))
        await asyncio.gather(broadcaster.disconnect("socket", 7))

    for broadcaster in (EnrollmentProgressBroadcaster(), DeviceStatusBroadcaster()):
        asyncio.run(connect_and_leave(broadcaster))
    assert [record.message.split("route ")[1] for record in caplog.records] == [
        *["/ws/enrollment to Tidings"] * 2,
        *["/ws/device-status to Tidings"] * 2,
    ]


def test_a_health_checker_reaches_its_pages(existing: Server, page: Page) -> None:
    mine = page("/ws/device-status", 7)
    told(mine, 1)
    broadcaster = DeviceStatusBroadcaster()

    async def check() -> None:
        await broadcaster.broadcast_device_status(7, 21, "online", last_seen=NOW)
        await broadcaster.broadcast_device_status(7, 21, "offline")
        await broadcaster.broadcast_device_info(7, 22, {"firmware": "4.2"})

    asyncio.run(check())
    seen = "2026-01-31T09:30:00.000Z"
    assert told(mine, 4, "device_id", "status", "last_seen", "info") == [
        [21, "online", seen, None],
        [21, "offline", seen, None],
        [22, "unknown", None, None],
        [22, None, None, {"firmware": "4.2"}],
    ]


def test_a_document_worker_reaches_its_pages(existing: Server, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the objects for jobs, none knows the school.
    monkeypatch.setenv("TIDINGS_SCHOOL_ID", "1")
    tidings.configure(existing.url, token(school_id=None, schools=[1, 7, 8]))
    existing.post("/api/jobs", {"job_id": "j", "job_type": "scan"})
    mine = page("/progress/ws/j")
    jobs = ProcessingJobLifecycle
    jobs.mark_queued("j", queue_name="scans", task_id="t1")
    assert jobs.mark_started("j")["attempt"] == 1
    jobs.mark_progress("j", progress=40, message="Page 2", metadata={"page": 2})
    assert tidings.flush(10)
    jobs.mark_failed("j", error_message="Out of memory")
    assert jobs.mark_started("j")["attempt"] == 2
    jobs.mark_completed("j", result_payload={"pages": 3})
    assert tidings.flush(10)
    queue = {"queue_name": "scans", "task_id": "t1"}
    failed = {**queue, "page": 2, "error": "Out of memory"}
    assert told(mine, 8, "status", "progress", "message", "metadata") == [
        ["pending", 0.0, "Pending", {}],
        ["queued", 0.0, "Queued", queue],
        ["in_progress", 0.0, "In progress", queue],
        ["in_progress", 40.0, "Page 2", {**queue, "page": 2}],
        ["failed", 40.0, "Out of memory", failed],
        ["queued", 0.0, "Queued", failed],
        ["in_progress", 0.0, "In progress", failed],
        ["completed", 100.0, "Completed", {**queue, "page": 2, "result": {"pages": 3}}],
    ]
    waiting = jobs.enqueue("scan", {"path": "x"})
    assert jobs.mark_started(waiting)["status"] == "in_progress"
    jobs.mark_progress(42, 10)
    assert tidings.flush(10)
    assert (existing.job("42") or {})["job_type"] == "job"
    cancelled = jobs.enqueue("scan", {})
    assert tidings.flush(10)
    existing.post(f"/api/jobs/{cancelled}/cancel", {})
    assert jobs.mark_started(cancelled)["status"] == "cancelled"
    jobs.mark_completed(42, "x" * 20_000)
    assert tidings.flush(10)
    assert (existing.job("42") or {})["result"] == "x" * 20_000


def test_a_school_that_is_no_number_is_named_by_configure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_SCHOOL_ID", "first")
    with pytest.raises(ValueError, match="TIDINGS_SCHOOL_ID is 'first'"):
        tidings.configure("http://127.0.0.1:1")


def test_a_process_control_back_end_reaches_its_charts(existing: Server, page: Page) -> None:
    tidings.configure(existing.url, token(school_id=1))
    existing.put("/api/characteristics/3", {})
    chart = page("/ws/samples")
    chart.send('{"type":"subscribe","characteristic_ids":[3]}')
    assert told(chart, 2, "type") == [["subscribed"], ["limits_update"]]
    notifier = AlertNotifier()

    async def measure() -> None:
        await notifier.control_limits_updated(ControlLimitsUpdatedEvent(3, 5.0, 8.0, 2.0, method="own", sample_count=25))
        await notifier.sample_processed(SampleProcessedEvent(501, 3, 9.0, 0.4, "beyond_ucl", False, NOW))
        await notifier.notify_violation_created(ViolationCreated(9001, 501, 3, 1, "Beyond limits", "CRITICAL", NOW))
        await asyncio.to_thread(tidings.flush, 10)
        await notifier.notify_violation_acknowledged(ViolationAcknowledged(9001, "ann", "Tool changed", NOW))
        unknown = SampleProcessedEvent(sample_id=502, characteristic_id=4, mean=1.0, range_value=None, zone="zone_c_upper", in_control=True)
        await notifier.sample_processed(unknown)

    asyncio.run(measure())
    assert tidings.flush(10)
    messages = [json.loads(chart.recv(10)) for _ in range(4)]
    assert [message["type"] for message in messages] == ["limits_update", "sample", "violation", "ack_update"]
    assert messages[0]["ucl"] == 8.0
    sample = messages[1]["sample"]
    assert [sample[name] for name in ("id", "mean", "zone", "in_control", "timestamp")] == [501, 9.0, "beyond_ucl", False, "2026-01-31T09:30:00.000Z"]
    assert [messages[2]["violation"][name] for name in ("id", "severity")] == [9001, "CRITICAL"]
    assert [messages[3][name] for name in ("violation_id", "ack_user")] == [9001, "ann"]
    assert existing.get("/api/characteristics/4")["characteristic_id"] == "4"
    known = existing.get("/events/characteristics/3?wait=0")["messages"]
    limits = next(message["payload"] for message in known if message["type"] == "control_limits")
    assert [limits[name] for name in ("center_line", "ucl", "lcl", "method", "sample_count")] == [5.0, 8.0, 2.0, "own", 25]


def test_uploads_of_one_name_are_uploads_of_their_own(existing: Server, page: Page) -> None:
    tidings.configure(existing.url, token(school_id=1))
    mine = page("/ws/upload-progress")
    notifier, name = ProgressNotifier(), "Zeugnis 作业.pdf"
    for progress in (0, 50, 100):
        notifier.notify(ProgressEvent(name, progress))
    notifier.notify(ProgressEvent(file_id=name, progress=30))
    notifier.notify(ProgressEvent(name, -1, "The disk is full"))
    ends: list[dict[str, Any]] = []
    while len(ends) < 2:
        message = json.loads(mine.recv(10))
        if message["type"] == "progress_update" and message["status"] != "processing":
            ends.append(message)
    ends.sort(key=lambda end: end["isComplete"], reverse=True)
    fields = ("file_id", "status", "progress", "isComplete", "error")
    assert [[end[field] for field in fields] for end in ends] == [
        [name, "completed", 100, True, None],
        [name, "error", 30, False, "The disk is full"],
    ]
    assert ends[0]["processing_id"] != ends[1]["processing_id"]


def test_an_acknowledgement_is_sent_after_its_violation(existing: Server) -> None:
    """Both subjects are different, so only the order of the reports says which comes first."""
    tidings.configure(existing.url, token(school_id=1))
    notifier = AlertNotifier()

    async def both() -> None:
        await notifier.notify_violation_created(ViolationCreated(1, 2, 77, 1, "Beyond limits", "WARNING", NOW))
        await notifier.notify_violation_acknowledged(ViolationAcknowledged(1, "ann", "Seen", NOW))

    async def again() -> None:
        await notifier.notify_violation_created(ViolationCreated(3, 4, 78, 1, "Beyond limits", "WARNING", NOW))
        await notifier.notify_violation_acknowledged(ViolationAcknowledged(3, "ann", "Seen", NOW))

    asyncio.run(both())
    asyncio.run(again())
    assert tidings.flush(10)
    assert existing.get("/api/violations?acknowledged=false")["violations"] == []
    violations = existing.get("/api/violations?characteristic_id=77")["violations"]
    assert [violation["acknowledged"] for violation in violations] == [True]


def test_a_back_end_does_not_wait_for_an_answer() -> None:
    def work() -> None:
        for _ in range(100):
            asyncio.run(EnrollmentProgressBroadcaster().broadcast_progress(7, "s", 0, "ready", ""))
            ProcessingJobLifecycle.mark_failed("j", error_message="x")
            ProgressNotifier().notify(ProgressEvent("f", 100))

    # It accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tidings.configure(f"http://127.0.0.1:{silent.getsockname()[1]}", token(), flush_secs=0.1)
        back_end = threading.Thread(target=work, daemon=True)
        back_end.start()
        back_end.join(PATIENCE_SECS)
        assert not back_end.is_alive()
        assert not tidings.flush(0.1), "nothing has been answered"
        tidings.reporter().close()


def test_while_a_back_end_moves_it_tells_both(existing: Server) -> None:
    old: list[Any] = []

    class OldBroadcaster:
        async def register(self, socket: object, school_id: int) -> None:
            old.append(socket)

        async def broadcast_progress(self, school_id: int, session_id: str, progress: int, status: str, message: str) -> str:
            old.append((status, progress))
            return "sent"

        def get_connection_count(self, school_id: int | None = None) -> int:
            return 12

    broadcaster = Both(OldBroadcaster(), EnrollmentProgressBroadcaster())

    async def work() -> None:
        await broadcaster.register("socket", 7)
        assert await broadcaster.broadcast_progress(7, "s", 33, "placing", "x") == "sent"

    asyncio.run(work())
    assert broadcaster.get_connection_count() == 12
    assert old == ["socket", ("placing", 33)]
    assert tidings.flush(10)
    assert existing.get("/api/enrollments/s", 7)["status"] == "placing"


def test_the_names_and_parameters_are_those_of_the_existing_objects() -> None:
    expected = {
        EnrollmentProgressBroadcaster.broadcast_progress: "school_id session_id progress status message",
        EnrollmentProgressBroadcaster.broadcast_completion: "school_id session_id message quality_score",
        EnrollmentProgressBroadcaster.broadcast_cancelled: "school_id session_id message",
        EnrollmentProgressBroadcaster.broadcast_error: "school_id session_id error_message",
        EnrollmentProgressBroadcaster.get_connection_count: "school_id",
        DeviceStatusBroadcaster.broadcast_device_status: "school_id device_id status last_seen",
        DeviceStatusBroadcaster.broadcast_device_info: "school_id device_id device_info",
        ProcessingJobLifecycle.enqueue: "job_type payload _ job_id __",
        ProcessingJobLifecycle.mark_queued: "job_id queue_name task_id",
        ProcessingJobLifecycle.mark_started: "job_id",
        ProcessingJobLifecycle.mark_progress: "job_id progress message metadata",
        ProcessingJobLifecycle.mark_completed: "job_id result_payload",
        ProcessingJobLifecycle.mark_failed: "job_id error_message result_payload _",
        AlertNotifier.notify_violation_created: "event",
        AlertNotifier.notify_violation_acknowledged: "event",
        ProgressNotifier.notify: "event",
        ProgressEvent: "file_id progress message",
        ViolationCreated: "violation_id sample_id characteristic_id rule_id rule_name severity timestamp",
        SampleProcessedEvent: "sample_id characteristic_id mean range_value zone in_control timestamp",
        ControlLimitsUpdatedEvent: "characteristic_id center_line ucl lcl method sample_count timestamp",
        ViolationAcknowledged: "violation_id user reason timestamp",
    }
    for method, names in expected.items():
        parameters = [name for name in inspect.signature(method).parameters if name != "self"]
        assert parameters == names.split(), method
