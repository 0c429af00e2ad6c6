"""Each example of the README runs as printed, against a real server."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Server, token

import tidings

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = [textwrap.dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)]


class Enough(Exception):
    pass


@pytest.fixture
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The environment and the names that the README takes as given. `watch` never ends, so the reader stops it."""
    monkeypatch.setenv("TIDINGS_URL", server.url)
    monkeypatch.setenv("TIDINGS_TOKEN", token(school_id=None, schools=[1, 7]))
    monkeypatch.setenv("TIDINGS_SCHOOL_ID", "1")
    tidings.configure()
    saved: list[int] = []

    class Watch(tidings.Watch):
        def __iter__(self) -> Iterator[tidings.Message]:
            for message in super().__iter__():
                yield message
                if message["type"] == "ready":
                    raise Enough

    monkeypatch.setattr("tidings._watch.Watch", Watch)
    yield {"rows": [1, 2, 3], "save": saved.append, "saved": saved, "tidings": tidings}
    tidings.reporter().close()


@pytest.mark.parametrize("example", EXAMPLES, ids=[str(place) for place in range(len(EXAMPLES))])
def test_an_example_runs_as_printed(example: str, environment: dict[str, Any], server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    if server.job("readme") is None:
        server.post("/api/jobs", {"job_id": "readme", "job_type": "import", "status": "in_progress"})
    is_endless = "tidings.watch(" in example
    code = compile(example, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        result = eval(code, environment)
        if inspect.iscoroutine(result):
            asyncio.run(result)
        assert not is_endless, "the watch has ended"
    except Enough:
        assert is_endless
    assert tidings.flush(10)
    if "job.track" in example:
        assert environment["saved"] == [1, 2, 3]
        jobs = [event for event in server.log() if event.get("job_type") == "import" and event["metadata"].get("title") == "Students"]
        assert (jobs[-1]["status"], jobs[-1]["progress"]) == ("completed", 100.0)
    elif "print(" in example:
        assert "job_progress readme" in capsys.readouterr().out
    elif "State()" in example:
        assert environment["state"]["jobs/readme"]["status"] == "in_progress"
    else:
        assert server.get("/api/enrollments/session-1", 7)["status"] == "placing"
