"""The test vectors that all clients share: `clients/vectors`."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from scripted import TIMEOUT_SECS, ScriptedServer

import tidings
from tidings._sse import SseParser
from tidings._watch import Watch

FOLDER = Path(__file__).parents[2] / "vectors"
TRANSPORTS = ("sse", "websocket", "poll")


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / name).read_text("utf-8"))["cases"]


def chunks(case: dict[str, Any]) -> list[bytes]:
    if "base64" in case:
        return [base64.b64decode(chunk) for chunk in case["base64"]]
    return [chunk.encode() for chunk in case["chunks"]]


@pytest.mark.parametrize("case", cases("sse.json"), ids=lambda case: case["name"])
def test_the_parser_of_sse_passes_the_shared_vectors(case: dict[str, Any]) -> None:
    parser = SseParser()
    events = [event for chunk in chunks(case) for event in parser.feed(chunk)]
    assert [{name: value for name, value in vars(event).items() if value is not None} for event in events] == case["events"]


def lives() -> list[Any]:
    return [
        pytest.param(case, transport, id=f"{transport}-{case['name']}")
        for case in cases("watch.json")
        for transport in case.get("transports", TRANSPORTS)
    ]


@pytest.mark.parametrize(("case", "transport"), lives())
def test_watch_passes_the_shared_vectors(case: dict[str, Any], transport: str) -> None:
    asyncio.run(asyncio.wait_for(live(case, transport), TIMEOUT_SECS))


async def live(case: dict[str, Any], transport: str) -> None:
    options = case.get("options", {})
    tokens = iter(options.get("tokens", ["any"]))
    last = ""

    def token() -> str:
        nonlocal last
        last = next(tokens, last)
        return last

    expect = case["expect"]
    delivered: list[dict[str, Any]] = []
    state = tidings.State()
    outcome, error = "watching", None
    async with ScriptedServer(case, transport) as server:
        watch = Watch("jobs", url=server.url, token=token, cursor=options.get("cursor"), transports=[transport], sleep=server.sleep)

        async def read() -> None:
            nonlocal outcome, error
            try:
                async for message in watch:
                    delivered.append(message)
                    state.apply(message)
                outcome = "ended"
            except tidings.TidingsError as failure:
                outcome, error = "failed", failure

        reading = asyncio.create_task(read())
        complete = asyncio.create_task(server.complete.wait())
        await asyncio.wait({reading, complete}, return_when=asyncio.FIRST_COMPLETED)
        for task in (reading, complete):
            task.cancel()
        await asyncio.gather(reading, complete, return_exceptions=True)
    for script, request in zip(case["connections"], server.requests, strict=False):
        check(script, request)
    assert (outcome, watch.cursor) == (expect["outcome"], expect.get("cursor"))
    for name, value in expect.get("error", {}).items():
        assert getattr(error, name) == value
    if outcome == "watching":
        assert next(iter(server.requests[-1].cursors().values()), None) == expect["cursor"]
    else:
        assert len(server.requests) == len(case["connections"])
    assert [{name: got.get(name) for name in want} for got, want in zip(delivered, expect["delivered"], strict=True)] == expect["delivered"]
    if "state" in expect:
        assert {key: message["seq"] for key, message in state.items()} == expect["state"]


def check(script: dict[str, Any], request: Any) -> None:
    expect, cursors = script["expect"], request.cursors()
    assert next(iter(cursors.values()), None) == expect["cursor"]
    assert set(cursors) <= set(expect.get("cursor_in", cursors))
    if "token" in expect:
        assert request.headers["authorization"] == f"Bearer {expect['token']}"
    for field, waited in (("wait_ms", request.waited_secs), ("silence_ms", request.silent_secs)):
        bounds = script.get(field, {})
        assert bounds.get("min", 0) <= waited * 1000 <= bounds.get("max", float("inf")), field
