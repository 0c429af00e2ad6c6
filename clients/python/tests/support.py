"""Real servers, a proxy that cuts connections, and conditions to wait for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx
import pytest

import tidings

T = TypeVar("T")
SECRET = "a secret of the tests, of at least 32 bytes"
BINARY = os.environ.get("TIDINGS_BIN") or str(Path(__file__).parents[3] / "target/debug/tidings")
LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")
START_SECS = 60.0
# `.ci/clients-python` does not install these, because they are large. It installs every other package that a test needs.
BY_HAND = frozenset({"torch", "accelerate", "lightning"})


def token(role: str = "worker", school_id: int | None = 1, ttl_secs: float = 3600, **claims: Any) -> str:
    now = int(time.time())
    payload = {"sub": "tests", "role": role, "school_id": school_id, "iat": now, "exp": int(now + ttl_secs), **claims}

    def encode(part: object) -> str:
        data = part if isinstance(part, bytes) else json.dumps(part).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{encode({'alg': 'HS256', 'typ': 'JWT'})}.{encode(payload)}"
    return f"{signed}.{encode(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))}"


def needs(module: str) -> Any:
    """Returns the module. If it is not installed, the test is skipped, or fails; see `missing`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is installed and cannot be imported is an error.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
    missing(module)


def missing(module: str) -> NoReturn:
    """Skips the test, with the reason. With `TIDINGS_REQUIRE_ALL` it fails, unless the package is one of `BY_HAND`."""
    if os.environ.get("TIDINGS_REQUIRE_ALL") and module.partition(".")[0] not in BY_HAND:
        pytest.fail(f"{module} is required and not installed", pytrace=False)
    pytest.skip(f"{module} is not installed", allow_module_level=True)


def wait_for(condition: Callable[[], T], secs: float = 30) -> T:
    """Returns the first true value of `condition`."""
    deadline = time.monotonic() + secs
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not true within {secs} s"
        threading.Event().wait(0.02)


class Server:
    """A server in a folder of its own, on a port that stays the same over restarts."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self._folder, self._settings, self.port = folder, settings, 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS_", "ROCKET_"))},
            "ROCKET_ADDRESS": "127.0.0.1",
            "ROCKET_PORT": str(self.port),
            "TIDINGS_DATA_DIR": str(self._folder / "data"),
            "TIDINGS_JWT_SECRET": SECRET,
            "TIDINGS_LOG": "error",
            **{f"TIDINGS_{name.upper()}": str(value) for name, value in self._settings.items()},
        }
        self._process = subprocess.Popen([BINARY, "serve"], cwd=self._folder, env=environment, stdout=subprocess.PIPE, text=True)
        lines: list[str] = []
        listening = threading.Event()

        def read(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if found := LISTENS.search(line):
                    self.port = int(found[1])
                    listening.set()
            listening.set()

        threading.Thread(target=read, args=(self._process,), daemon=True).start()
        assert listening.wait(START_SECS), "the server did not start"
        assert self._process.poll() is None, "".join(lines)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(by)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def get(self, path: str, school_id: int = 1) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token('viewer', school_id)}", "Accept": "application/json"}
        response = httpx.get(self.url + path, headers=headers, timeout=20)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: object, school_id: int = 1) -> dict[str, Any]:
        response = httpx.post(self.url + path, json=body, headers={"Authorization": f"Bearer {token('worker', school_id)}"}, timeout=20)
        assert response.status_code < 300, response.text
        return response.json()

    def put(self, path: str, body: object, school_id: int = 1) -> dict[str, Any]:
        response = httpx.put(self.url + path, json=body, headers={"Authorization": f"Bearer {token('worker', school_id)}"}, timeout=20)
        assert response.status_code < 300, response.text
        return response.json()

    def job(self, job_id: str, school_id: int = 1) -> dict[str, Any] | None:
        response = httpx.get(f"{self.url}/api/jobs/{job_id}", headers={"Authorization": f"Bearer {token('viewer', school_id)}"}, timeout=20)
        return response.json() if response.status_code == 200 else None

    def log(self, school_id: int = 1) -> list[dict[str, Any]]:
        """Every retained event of the school, in order: a replay of the whole log."""
        first = self.get(f"/events/schools/{school_id}?wait=0", school_id)["messages"][0]["cursor"]
        events: list[dict[str, Any]] = []
        cursor = first
        while True:
            answer = self.get(f"/events/schools/{school_id}?wait=0&tick_ms=0&cursor={cursor}", school_id)
            found = [message for message in answer["messages"] if "seq" in message]
            events += found
            if not found:
                return events
            cursor = answer["cursor"]

    def story(self, job_id: str, school_id: int = 1) -> list[tuple[Any, ...]]:
        """Status and progress of each event of a job."""
        return [(event["status"], event["progress"]) for event in self.log(school_id) if event.get("job_id") == job_id]


class Proxy:
    """A TCP proxy that can cut every connection, refuse new ones, or pass nothing on."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.is_refusing = self.is_black_hole = False
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        with self._lock:
            cut, self._sockets = self._sockets, set()
        for one in cut:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.is_refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._to()), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.is_black_hole:
                    sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def reporting(url: str, secret: Any = None, **options: Any) -> Iterator[tidings.Reporter]:
    """A reporter whose retries are quick."""
    quick = {"backoff": lambda: tidings.Backoff(0.05, 0.3), "interval_secs": 0.02, **options}
    reporter = tidings.Reporter(url, token() if secret is None else secret, **quick)
    try:
        yield reporter
    finally:
        reporter.close(0 if reporter.is_failing else None)
