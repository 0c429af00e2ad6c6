"""What the log says about the outages of a `watch`: one warning for each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted import ScriptedServer

from tidings._watch import Watch

CONNECTED = {"type": "connected", "message": "Connected", "school_id": 1, "channels": ["jobs"], "cursor": "e-0", "heartbeat_secs": 15}
READY = {"type": "ready", "cursor": "e-0", "timestamp": "2026-03-01T09:30:00.000Z"}
RESTARTS = {"type": "closing", "code": 1001, "reason": "the server stops", "reconnect": True, "retry_ms": 100, "timestamp": "2026-03-01T09:30:00.000Z"}
AWAY = {"status": 503, "body": "starting", "end": "close"}
NOTHING: dict[str, Any] = {"send": [], "end": "cut"}


def warnings_of(connections: list[dict[str, Any]], transport: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns the warnings of a watch until the script is complete."""

    async def follow() -> None:
        async with ScriptedServer({"connections": connections}, transport) as server:

            async def read() -> None:
                async for _ in Watch("jobs", url=server.url, token="t", transports=[transport], sleep=server.sleep):
                    pass

            reading = asyncio.ensure_future(read())
            await asyncio.wait_for(server.complete.wait(), 20)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(follow())
    return [record.getMessage().partition("tries again: ")[2] for record in caplog.records if (record.levelname, record.name) == ("WARNING", "tidings")]


@pytest.mark.parametrize("transport", ["sse", "websocket", "poll"])
def test_an_outage_after_a_graceful_restart_is_logged(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    session = {"send": [CONNECTED, READY, RESTARTS], "end": "close", "close_code": 1001}
    assert warnings_of([session, AWAY, AWAY, session, AWAY, AWAY], transport, caplog) == ["status 503", "status 503"]


@pytest.mark.parametrize("transport", ["sse", "websocket"])
def test_connections_that_end_before_their_first_message_are_logged_once(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    [warning] = warnings_of([NOTHING, NOTHING, NOTHING], transport, caplog)
    assert warning == "the connection ended before its first message"
