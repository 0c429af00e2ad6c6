"""Readers and reporters through restarts, kills, cut connections and expiring tokens: in the end, everyone has the whole story, once, in order."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from support import Proxy, Server, reporting, token, wait_for

import tidings
from tidings._outbox import Report, Subject
from tidings._watch import Watch

JOBS, STEPS, SAMPLES = 12, 40, 200
TOKEN_SECS = 2


def key(event: dict[str, Any]) -> tuple[Any, ...]:
    return event["seq"], event["cursor"], event["job_id"], event["status"], event["progress"], event["attempt"]


class Reader(threading.Thread):
    def __init__(self, name: str, url: str, transports: Any, is_async: bool) -> None:
        super().__init__(name=name, daemon=True)
        self.events: list[dict[str, Any]] = []
        self.resets = 0
        self.error: BaseException | None = None
        self.ready = threading.Event()
        self._is_async = is_async
        self._watch = Watch(
            "jobs",
            url=url,
            token=lambda: token("viewer", ttl_secs=TOKEN_SECS),
            transports=transports,
            params={"tick_ms": 0},
            backoff=tidings.Backoff(0.02, 0.2),
        )

    def run(self) -> None:
        try:
            if self._is_async:
                asyncio.run(self._read())
            else:
                for message in self._watch:
                    if self._take(message):
                        return
        except BaseException as error:
            self.error = error

    async def _read(self) -> None:
        async for message in self._watch:
            if self._take(message):
                return

    def _take(self, message: dict[str, Any]) -> bool:
        if message["type"] == "ready":
            self.ready.set()
        self.resets += message["type"] == "reset"
        if "seq" in message:
            self.events.append(message)
        return message.get("job_id") == "end"


@pytest.mark.timeout(120)
def test_through_restarts_cut_proxies_and_expiring_tokens_every_reader_has_the_whole_story_once(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = Server(tmp_path / "s", heartbeat_secs=1, reconnect_spread_ms=100, jwt_leeway_secs=0)
    proxy = Proxy(lambda: server.port)
    readers = [
        Reader("sse", proxy.url, ["sse"], False),
        Reader("websocket", proxy.url, ["websocket"], False),
        Reader("poll", proxy.url, ["poll"], False),
        Reader("sse, asynchronous", proxy.url, ["sse"], True),
        Reader("any transport", proxy.url, None, True),
    ]
    working = threading.Event()
    try:
        server.put("/api/characteristics/c", {})
        for reader in readers:
            reader.start()
        for reader in readers:
            assert reader.ready.wait(20), reader.error
        with reporting(proxy.url, lambda: token(ttl_secs=TOKEN_SECS), request_secs=2, interval_secs=0.01) as reporter:

            def work(number: int) -> None:
                with tidings.Job("chaos", id=f"job-{number}", reporter=reporter) as job:
                    for step in range(STEPS):
                        job.update(100 * step / STEPS, f"step {step}")
                        working.wait(chance.random() * 0.4)

            def measure() -> None:
                for value in range(SAMPLES):
                    reporter.report(Report(Subject("characteristics", "c"), "samples", {"value": value}))
                    working.wait(chance.random() * 0.05)

            workers = [threading.Thread(target=measure), *(threading.Thread(target=work, args=(number,)) for number in range(JOBS))]
            for worker in workers:
                worker.start()
            for turn in range(16):
                working.wait(chance.random() * 0.6)
                proxy.cut()
                if turn % 5 == 2:
                    proxy.is_black_hole = True
                    working.wait(chance.random())
                    proxy.is_black_hole = False
                    proxy.cut()
                if turn % 4 == 3:
                    server.stop(signal.SIGKILL if turn % 8 == 7 else signal.SIGTERM)
                    server.start()
            working.set()
            for worker in workers:
                worker.join(60)
            assert reporter.flush(30)
            assert reporter.dropped == 0
        server.post("/api/jobs", {"job_id": "end", "job_type": "chaos"})
        wait_for(lambda: not any(reader.is_alive() for reader in readers), 40)
        log = server.log()
        told = [key(event) for event in log if "job_id" in event]
        samples = [event for event in log if event["type"] == "sample"]
    finally:
        proxy.close()
        server.stop()
    assert proxy.accepted > 50
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    for reader in readers:
        assert reader.error is None, f"{reader.name}: {reader.error!r}"
        assert reader.resets == 0, reader.name
        assert [key(event) for event in reader.events] == told, reader.name
    for number in range(JOBS):
        mine = [(status, progress, attempt) for _, _, job_id, status, progress, attempt in told if job_id == f"job-{number}"]
        assert mine[0] == ("in_progress", 0.0, 1)
        assert [status for status, _, _ in mine].count("completed") == 1
        assert mine[-1] == ("completed", 100.0, 1)
        progress = [progress for _, progress, _ in mine]
        assert all(earlier <= later for earlier, later in itertools.pairwise(progress))
    # Every sample counts, so a report that took effect twice would be seen.
    assert [event["payload"]["value"] for event in samples] == list(range(SAMPLES))
