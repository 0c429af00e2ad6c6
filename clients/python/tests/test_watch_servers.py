"""Which server gets which token and school."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted import ScriptedServer

import tidings


def asked(path: str | None, *, is_configured: bool, **options: Any) -> tuple[str | None, str | None]:
    """Returns the token and the school that a server gets from `watch`, whose `url` is the server's with this path; None: it has no `url`.
    `is_configured`: whether `configure` names this server, or another one."""

    async def ask() -> tuple[str | None, str | None]:
        async with ScriptedServer({"connections": []}, "sse") as server:
            tidings.configure(server.url if is_configured else "http://127.0.0.1:1", "configured", school_id=7)
            url = None if path is None else server.url + path
            reading = asyncio.ensure_future(anext(aiter(tidings.watch("jobs", url=url, transports=["sse"], **options))))  # type: ignore[arg-type]
            await asyncio.wait_for(server.complete.wait(), 20)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return server.requests[0].headers.get("authorization"), server.requests[0].query.get("school_id")

    return asyncio.run(ask())


@pytest.mark.parametrize("path", [None, "", "/"])
def test_the_configured_server_gets_the_configured_token_and_school(path: str | None) -> None:
    assert asked(path, is_configured=True) == ("Bearer configured", "7")


def test_another_server_never_gets_the_configured_token_and_school(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_SCHOOL_ID", raising=False)
    assert asked("", is_configured=False) == (None, None)
    assert asked("", is_configured=False, token="given", school_id=9) == ("Bearer given", "9")
    monkeypatch.setenv("TIDINGS_TOKEN", "of the environment")
    monkeypatch.setenv("TIDINGS_SCHOOL_ID", "8")
    assert asked("", is_configured=False) == ("Bearer of the environment", "8")
