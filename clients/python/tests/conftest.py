from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support import BINARY, Server

from tidings import _reporter

for name in [name for name in os.environ if name.startswith(("TIDINGS_URL", "TIDINGS_TOKEN"))]:
    del os.environ[name]


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert os.access(BINARY, os.X_OK), f"{BINARY} is not a program: build it, or set TIDINGS_BIN"
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def server(_server: Server) -> Server:
    """A server that tests share, each with ids or schools of its own."""
    return _server


@pytest.fixture(autouse=True)
def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test configures is not the server of the next one's watch."""
    monkeypatch.setattr(_reporter, "_configured", None)
