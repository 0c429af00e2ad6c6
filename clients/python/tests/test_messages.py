"""The client's types and tables are those of the documents with which a real server describes itself."""

from __future__ import annotations

import copy
import json
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rendering import Module, events, fields_of, resolved, words
from support import Server

from tidings import _job, _outbox, _state, messages

FILE = Path(messages.__file__)
Documents = dict[str, Any]


@pytest.fixture
def documents(server: Server) -> Documents:
    return {name: httpx.get(f"{server.url}/{name}.json", timeout=20).json() for name in ("openapi", "asyncapi")}


def rendered(documents: Documents) -> str:
    return Module(documents["openapi"], documents["asyncapi"]).text()


def test_the_types_are_those_that_the_server_describes(documents: Documents) -> None:
    if os.environ.get("TIDINGS_WRITE_TYPES"):
        FILE.write_text(rendered(documents))
    assert FILE.read_text().splitlines() == rendered(documents).splitlines(), "run TIDINGS_WRITE_TYPES=1 pytest tests/test_messages.py"


def test_no_name_of_a_type_says_a_word_twice(documents: Documents) -> None:
    names = re.findall(r"^(?:class )?_?([A-Z]\w+)[(: ]", rendered(documents), re.MULTILINE)
    assert {"Device", "DeviceAfterStatusUpdate", "EnrollmentSessionAfterProgress", "CharacteristicRule"} <= set(names)
    assert [name for name in names if len(set(words(name))) < len(words(name))] == []


def test_both_documents_describe_the_same_events(documents: Documents) -> None:
    schemas = documents["openapi"]["components"]["schemas"]
    found = events(documents["asyncapi"])
    assert len(found) > 5
    for name, payload in found.items():
        assert sorted(fields_of(resolved(schemas[name], schemas))) == sorted(fields_of(payload)), name


def add_a_field(openapi: Any, _: Any) -> None:
    openapi["components"]["schemas"]["JobProgress"]["properties"]["phase"] = {"type": "string"}


def remove_a_field(openapi: Any, _: Any) -> None:
    del openapi["components"]["schemas"]["JobProgress"]["properties"]["eta_at"]


def make_a_field_optional(openapi: Any, _: Any) -> None:
    openapi["components"]["schemas"]["DeviceInfoUpdate"]["required"].remove("name")


def change_a_type(openapi: Any, _: Any) -> None:
    openapi["components"]["schemas"]["SamplePayload"]["properties"]["mean"] = {"type": "string"}


def add_a_status(openapi: Any, _: Any) -> None:
    openapi["components"]["schemas"]["JobProgress"]["properties"]["status"]["enum"].append("paused")


def add_a_problem(openapi: Any, _: Any) -> None:
    openapi["components"]["schemas"]["Problem"]["properties"]["type"]["enum"].append("urn:tidings:problem:tired")


def remove_a_reason(_: Any, asyncapi: Any) -> None:
    asyncapi["components"]["messages"]["Reset"]["payload"]["properties"]["reason"]["oneOf"].pop()


@pytest.mark.parametrize(
    "change", [add_a_field, remove_a_field, make_a_field_optional, change_a_type, add_a_status, add_a_problem, remove_a_reason]
)
def test_a_change_of_the_contract_is_noticed(documents: Documents, change: Callable[[Any, Any], None]) -> None:
    changed = copy.deepcopy(documents)
    change(changed["openapi"], changed["asyncapi"])
    assert rendered(changed) != rendered(documents) == FILE.read_text()


def test_an_event_that_only_one_document_has_is_noticed(documents: Documents) -> None:
    changed = copy.deepcopy(documents)
    changed["asyncapi"]["components"]["messages"]["Other"] = changed["asyncapi"]["components"]["messages"]["Sample"]
    with pytest.raises(KeyError, match="Other"):
        rendered(changed)


def test_the_tables_of_the_client_name_what_the_server_describes(documents: Documents) -> None:
    described = {payload["properties"]["type"]["const"]: payload for payload in events(documents["asyncapi"]).values()}
    assert set(_state._SUBJECTS) == set(described)
    for name, (_, field, _) in _state._SUBJECTS.items():
        properties = described[name]["properties"]
        assert field in properties.get("payload", {}).get("properties", properties), name
    assert set(typing.get_args(messages.JobStatus)) > _job.FINISHED
    operations = {
        match.groups()
        for path, item in documents["openapi"]["paths"].items()
        if {"post", "put"} & set(item) and (match := re.fullmatch(r"/api/(\w+)/\{\w+\}/(\w+)", path))
    }
    verbs = {("jobs", verb) for verb in _outbox._WITH_ATTEMPT | _outbox._WITH_WORKER} | {("violations", "ack")}
    assert verbs <= operations
    assert {collection for collection, _ in operations} >= set(_outbox._ID_FIELDS)


def test_what_a_server_sends_has_the_described_fields(server: Server) -> None:
    server.post("/api/jobs", {"job_id": "typed", "job_type": "import", "status": "in_progress"})
    server.post("/api/jobs/typed/fail", {"error": "The disk is full"})
    seen = [event for event in server.log() if event.get("job_id") == "typed"]
    known = messages.JobProgress.__required_keys__ | messages.JobProgress.__optional_keys__
    for event in seen:
        assert messages.JobProgress.__required_keys__ <= set(event) <= known, json.dumps(event)
    state = set(server.job("typed") or {})
    assert messages.Job.__required_keys__ <= state <= messages.Job.__required_keys__ | messages.Job.__optional_keys__
