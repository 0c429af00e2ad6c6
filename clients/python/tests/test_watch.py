"""`watch` against a real server."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from scripted import ScriptedServer
from support import Proxy, Server, token

import tidings
from tidings import _watch
from tidings._watch import Watch

TRANSPORTS = ("sse", "websocket", "poll")
SCHOOLS = itertools.count(1_000)


@pytest.fixture
def school() -> int:
    """A school without events."""
    return next(SCHOOLS)


def until_ready(watch: Watch) -> tuple[list[dict[str, Any]], Iterator[dict[str, Any]]]:
    messages, before = iter(watch), []
    for message in messages:
        if message["type"] == "ready":
            break
        before.append(message)
    return before, messages


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_present_state_comes_first_then_each_event(server: Server, school: int, transport: Any) -> None:
    server.post("/api/jobs", {"job_id": "a/b ü", "job_type": "x"}, school)
    watch = tidings.watch("jobs", url=server.url, token=token("viewer", school), transports=[transport], tick_ms=0)
    before, messages = until_ready(watch)
    assert [(message["job_id"], message["snapshot"]) for message in before] == [("a/b ü", True)]
    for progress in (10, 20, 30):
        server.post("/api/jobs/a%2Fb%20%C3%BC/progress", {"progress": progress}, school)
    assert [next(messages)["progress"] for _ in range(3)] == [10.0, 20.0, 30.0]
    messages.close()
    # A stored cursor continues behind the last message, on any transport.
    server.post("/api/jobs/a%2Fb%20%C3%BC/complete", {}, school)
    other = TRANSPORTS[TRANSPORTS.index(transport) - 1]
    scope = tidings.channel("jobs", "a/b ü")
    later = iter(tidings.watch(scope, url=server.url, token=token("viewer", school), transports=[other], cursor=watch.cursor))
    assert next(later)["status"] == "completed"
    later.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_filters_and_lists_of_channels_select_the_scope(server: Server, school: int, transport: Any) -> None:
    for number, kind in enumerate(("import", "export", "scan")):
        server.post("/api/jobs", {"job_id": f"j{number}", "job_type": kind}, school)
    options: dict[str, Any] = {"url": server.url, "token": token("viewer", school), "transports": [transport]}

    def ids(scope: Any, **params: Any) -> list[str]:
        before, messages = until_ready(tidings.watch(scope, **options, **params))
        messages.close()
        return [message["job_id"] for message in before]

    assert ids("jobs", job_type=["import", "scan"]) == ["j0", "j2"]
    assert ids("jobs?job_type=export") == ["j1"]
    assert ids(["jobs/j0", "jobs/j1"]) == ["j0", "j1"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_permanent_rejection_is_raised(server: Server, school: int, transport: Any) -> None:
    cases = [("jobs/none", token("viewer", school), 404, "not-found"), ("jobs", "wrong", 401, "unauthorized")]
    for scope, secret, status, code in cases:
        with pytest.raises(tidings.Rejected) as raised:
            next(iter(tidings.watch(scope, url=server.url, token=secret, transports=[transport])))
        assert (raised.value.status, raised.value.code) == (status, code)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_cursor_of_another_server_is_answered_with_a_reset(server: Server, school: int, transport: Any) -> None:
    for cursor in ("41", "ffffffff-7-00000000"):
        messages = iter(tidings.watch("jobs", url=server.url, token=token("viewer", school), transports=[transport], cursor=cursor))
        assert [next(messages)["type"], next(messages)["type"]] == ["reset", "ready"]
        messages.close()


def test_a_token_is_renewed_on_an_open_websocket(server: Server, school: int) -> None:
    made: list[float] = []

    def fresh() -> str:
        made.append(time.monotonic())
        return token("viewer", school, ttl_secs=1)

    proxy = Proxy(lambda: server.port)
    try:
        watch = tidings.watch("jobs", url=proxy.url, token=fresh, transports=["websocket"])
        _, messages = until_ready(watch)
        threading.Timer(9, lambda: server.post("/api/jobs", {"job_id": "late", "job_type": "x"}, school)).start()
        assert next(messages)["job_id"] == "late"
        # The stream has outlived its token, and the leeway of the server, without another connection.
        assert len(made) >= 2
        assert proxy.accepted == 1
        messages.close()
    finally:
        proxy.close()


def test_a_slow_consumer_of_the_synchronous_form_keeps_its_connection(tmp_path: Any) -> None:
    """Heartbeats are answered while the caller works: the server closes a WebSocket that is silent for two of them."""
    server = Server(tmp_path / "s", heartbeat_secs=1)
    proxy = Proxy(lambda: server.port)
    try:
        watch = tidings.watch("jobs", url=proxy.url, token=token("viewer"), transports=["websocket"])
        _, messages = until_ready(watch)
        idle = threading.Event()
        threading.Timer(4, idle.set).start()
        assert idle.wait(10)
        server.post("/api/jobs", {"job_id": "a", "job_type": "x"})
        assert next(messages)["job_id"] == "a"
        assert proxy.accepted == 1
        messages.close()
    finally:
        proxy.close()
        server.stop()


def test_a_network_that_holds_streams_back_is_left_for_the_next_transport(server: Server, school: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that answers for SSE but passes nothing on, and refuses upgrades."""
    monkeypatch.setattr("tidings._stream.FIRST_MESSAGE_SECS", 0.3)
    monkeypatch.setattr(_watch, "CONNECT_SECS", 0.3)

    class Buffering(httpx.AsyncBaseTransport):
        def __init__(self) -> None:
            self.inner = httpx.AsyncHTTPTransport()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.headers["accept"] == "application/json":
                return await self.inner.handle_async_request(request)

            async def nothing() -> Any:
                await asyncio.Event().wait()
                yield b""

            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=nothing())

    async def no_upgrade(*_: object, **__: object) -> None:
        from websockets.exceptions import InvalidUpgrade

        raise InvalidUpgrade("Upgrade")

    monkeypatch.setattr("websockets.asyncio.client.connect", no_upgrade)
    watch = Watch("jobs", url=server.url, token=token("viewer", school), client=lambda: httpx.AsyncClient(transport=Buffering()))
    assert watch.transport == "sse"
    messages = iter(watch)
    assert next(messages)["type"] == "ready"
    assert watch.transport == "poll"
    server.post("/api/jobs", {"job_id": "a", "job_type": "x"}, school)
    assert next(messages)["job_id"] == "a"
    messages.close()


def test_a_server_that_is_down_is_not_a_reason_for_another_transport() -> None:
    waits: list[float] = []

    async def sleep(secs: float) -> None:
        waits.append(secs)
        if len(waits) == 8:
            raise KeyboardInterrupt

    watch = Watch("jobs", url="http://127.0.0.1:1", token="any", sleep=sleep)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(anext(aiter(watch)))  # type: ignore[arg-type]
    assert watch.transport == "sse"
    for wait, pause in zip(waits, (1, 2, 4, 8, 16, 30, 30, 30)):
        assert pause <= wait <= pause * 1.5


def test_two_polls_begin_at_least_the_gap_apart_and_nothing_is_lost(server: Server, school: int) -> None:
    gap = 0.5
    starts: list[float] = []

    async def started(request: httpx.Request) -> None:
        starts.append(time.monotonic())

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(event_hooks={"request": [started]})

    server.post("/api/jobs", {"job_id": "busy", "job_type": "x"}, school)
    options: dict[str, Any] = {"url": server.url, "token": token("viewer", school), "params": {"tick_ms": 0}, "transports": ["poll"]}
    _, messages = until_ready(Watch("jobs", client=client, poll_gap=gap, **options))
    told: list[str] = []
    heard: list[str] = []

    def publish() -> None:
        while "end" not in told:
            told.append(str(len(told)) if len(starts) < 5 or len(told) < 20 else "end")
            server.post("/api/jobs/busy/progress", {"message": told[-1]}, school)

    publisher = threading.Thread(target=publish)
    publisher.start()
    while "end" not in heard:
        heard.append(next(messages)["message"])
    messages.close()
    publisher.join()
    assert heard == told
    assert len(heard) >= 20, "it was busy"
    # One of them can be noted late on a slow machine, but not all.
    assert starts[-1] - starts[0] > gap * (len(starts) - 2)


def test_the_wait_starts_over_after_a_connection_that_brought_an_event() -> None:
    """A large present state may take several connections, each of which ends before `ready`."""
    first = {"type": "connected", "message": "Connected", "school_id": 1, "channels": ["jobs"], "cursor": "e-0", "heartbeat_secs": 15}
    event = {"type": "job_progress", "job_id": "a", "snapshot": True}
    connections = [{"send": [first, {**event, "seq": seq, "cursor": f"e-{seq}-x"}], "end": "cut"} for seq in range(1, 6)]

    async def waits() -> list[float]:
        async with ScriptedServer({"connections": connections}, "sse") as server:

            async def read() -> None:
                async for _ in Watch("jobs", url=server.url, token="t", transports=["sse"], sleep=server.sleep):
                    pass

            reading = asyncio.ensure_future(read())
            await asyncio.wait_for(server.complete.wait(), 10)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return [request.waited_secs for request in server.requests[1:]]

    for wait in asyncio.run(waits()):
        assert 1 <= wait <= 1.5


def test_watch_runs_where_an_event_loop_runs_already(server: Server, school: int) -> None:
    async def page() -> str:
        messages = iter(tidings.watch("jobs", url=server.url, token=token("viewer", school)))
        first = next(messages)["type"]
        messages.close()
        return first

    assert asyncio.run(page()) == "ready"


def test_an_abandoned_watch_leaves_no_thread_and_no_stream(server: Server, school: int) -> None:
    for transport in TRANSPORTS:
        for message in tidings.watch("jobs", url=server.url, token=token("viewer", school), transports=[transport]):
            assert message["type"] == "ready"
            break
    assert not [thread for thread in threading.enumerate() if thread.name == "tidings-watch"]


def test_a_failing_token_callback_is_called_again(server: Server, school: int) -> None:
    calls = itertools.count()

    async def fresh() -> str:
        if next(calls) == 0:
            raise RuntimeError("the login is down")
        return token("viewer", school)

    async def sleep(_: float) -> None:
        pass

    async def first() -> str:
        async for message in Watch("jobs", url=server.url, token=fresh, sleep=sleep):
            return message["type"]
        return ""

    assert asyncio.run(first()) == "ready"


def test_wrong_arguments_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="accepted are 'sse', 'websocket' and 'poll'"):
        tidings.watch("jobs", transports=["smoke"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`transports` is empty"):
        tidings.watch("jobs", transports=[])
    with pytest.raises(httpx.UnsupportedProtocol):
        next(iter(tidings.watch("jobs", url="gopher://x", token="t", transports=["poll"])))


def test_a_captive_portal_is_not_a_stream() -> None:
    """A page in place of a stream is tried again, and never delivered."""
    case = {"connections": [{"status": 203, "body": "<h1>Log in</h1>", "end": "close"}]}

    async def page() -> int:
        async with ScriptedServer(case, "sse") as server:
            reading = asyncio.ensure_future(anext(aiter(Watch("jobs", url=server.url, token="t", transports=["sse"], sleep=server.sleep))))
            await asyncio.wait_for(server.complete.wait(), 10)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return len(server.requests)

    assert asyncio.run(page()) >= 2


@pytest.mark.parametrize("transports", [("sse", "websocket"), ("poll",)])
def test_a_redirect_is_an_error_that_says_where_to(transports: Any) -> None:
    case = {"connections": [{"status": 308, "headers": {"Location": "https://tidings.example/events/jobs"}, "end": "close"}]}

    async def first() -> None:
        async with ScriptedServer(case, "sse") as server:
            await anext(aiter(Watch("jobs", url=server.url, token="t", transports=transports, sleep=server.sleep)))

    with pytest.raises(tidings.Rejected, match=r"308: it redirects to https://tidings\.example/events/jobs, which is not followed"):
        asyncio.run(asyncio.wait_for(first(), 10))


def test_a_watch_that_waits_for_its_server_says_so_once_per_outage(server: Server, school: int, caplog: pytest.LogCaptureFixture) -> None:
    proxy = Proxy(lambda: server.port)
    waits = 0

    async def sleep(_: float) -> None:
        nonlocal waits
        waits += 1
        proxy.is_refusing = waits % 3 != 0

    async def outages() -> None:
        messages = aiter(Watch("jobs", url=proxy.url, token=token("viewer", school), transports=["sse"], sleep=sleep))
        for number in range(2):
            caplog.clear()
            proxy.is_refusing = True
            proxy.cut()
            if number:
                server.post("/api/jobs", {"job_id": "after", "job_type": "x"}, school)
            await anext(messages)
            warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING" and record.name == "tidings"]
            assert len(warnings) == 1, warnings
            assert f"cannot watch {proxy.url}/events/jobs, and tries again: " in warnings[0]
        await messages.aclose()

    asyncio.run(asyncio.wait_for(outages(), 30))
    assert waits == 6
    proxy.close()


def test_the_school_of_the_environment_is_watched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token for several schools, as reports are. A scope that names its school is watched as it is."""
    monkeypatch.setenv("TIDINGS_URL", server.url)
    monkeypatch.setenv("TIDINGS_TOKEN", token(school_id=None, schools=[31, 32]))
    monkeypatch.setenv("TIDINGS_SCHOOL_ID", "31")
    for school_id in (31, 32):
        server.post("/api/jobs", {"job_id": "seen", "job_type": "import"}, school_id)
    for scope, expected in (("jobs", 31), ("jobs?school_id=32", 32), ("schools/32", 32), (["schools/32"], 32)):
        assert next(iter(tidings.watch(scope)))["school_id"] == expected, scope


def test_what_is_configured_for_reports_is_watched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`configure` takes the place of the environment. What `watch` is told takes the place of both."""
    monkeypatch.setenv("TIDINGS_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TIDINGS_TOKEN", "wrong")
    monkeypatch.setenv("TIDINGS_SCHOOL_ID", "40")
    tidings.configure(server.url, lambda: token(school_id=None, schools=[41, 42]), school_id=41)
    try:
        with tidings.job("import"), tidings.job("import", school_id=42):
            pass
        assert tidings.flush(10)
    finally:
        tidings.reporter().close()

    def schools(scope: str, **options: Any) -> set[int]:
        before, messages = until_ready(tidings.watch(scope, **options))
        messages.close()
        return {message["school_id"] for message in before}

    assert schools("jobs") == schools("jobs", token=token("viewer", 41)) == {41}
    assert schools("jobs", school_id=42) == schools("jobs?school_id=42") == schools("schools/42") == {42}
    with pytest.raises(tidings.Rejected, match="unauthorized"):
        schools("jobs", token="wrong")
