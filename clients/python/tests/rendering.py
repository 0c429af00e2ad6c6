"""Renders `tidings.messages` from the documents with which a server describes itself."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

HEAD = '''"""What a server sends: the types of messages, states and problems.

Rendered from `/openapi.json` and `/asyncapi.json` of a server. Do not edit: run `TIDINGS_WRITE_TYPES=1 pytest tests/test_messages.py`.

Messages are plain dictionaries at run time. Later servers may add fields, statuses and problems.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Union
'''
# Events in the shapes of other clients, which this one never asks for.
OTHER_SHAPES = ("FlatSample", "FlatViolation", "FlatAckUpdate", "FlatLimitsUpdate", "ProgressUpdate")
# The messages that `watch` returns in addition to events.
CONTROL = ("Ready", "Reset")
STATES = ("Job", "EnrollmentSession", "Device", "Characteristic", "Schedule")
PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None", "array": "list[Any]", "object": "dict[str, Any]"}


def events(asyncapi: Schema) -> dict[str, Schema]:
    """Returns the schema of each event that `watch` can return."""
    messages = {name: message["payload"] for name, message in asyncapi["components"]["messages"].items()}
    return {name: payload for name, payload in messages.items() if "seq" in payload.get("required", ()) and name not in OTHER_SHAPES}


def resolved(schema: Any, schemas: Schema) -> Any:
    """Returns a schema without references."""
    if isinstance(schema, list):
        return [resolved(one, schemas) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    return {name: resolved(one, schemas) for name, one in schema.items()}


def union(types: list[str]) -> str:
    """Returns the union of types, with one `Literal` for all constants."""
    distinct = list(dict.fromkeys(types))
    if "Any" in distinct:
        return "Any"
    literals = [one[8:-1] for one in distinct if one.startswith("Literal[")]
    others = [one for one in distinct if not one.startswith("Literal[")]
    return " | ".join([f"Literal[{', '.join(dict.fromkeys(literals))}]"] * bool(literals) + others)


def words(name: str) -> list[str]:
    """Returns the words of a name such as `DeviceStatusUpdate`."""
    return re.findall("[A-Z][a-z]*", name)


def after(state: str, event: str) -> str:
    """Returns the name of a state whose last event is this one: `DeviceAfterStatusUpdate`. A word that both begin with is said once."""
    own, rest = words(state), words(event)
    while len(rest) > 1 and own and own[0] == rest[0]:
        own, rest = own[1:], rest[1:]
    return f"{state}After{''.join(rest)}"


class Module:
    def __init__(self, openapi: Schema, asyncapi: Schema) -> None:
        self._schemas = openapi["components"]["schemas"]
        self._asyncapi = asyncapi
        self._classes: dict[str, str] = {}

    def text(self) -> str:
        problems = sorted(name.rsplit(":", 1)[1] for name in self._schemas["Problem"]["properties"]["type"]["enum"])
        types = self._type("ProblemType", self._schemas["Problem"]["properties"]["type"])
        statuses = self._type("JobStatus", self._schemas["JobProgress"]["properties"]["status"])
        found = sorted(events(self._asyncapi))
        for name in [*found, *STATES, "Problem"]:
            self._named(name)
        for name in CONTROL:
            self._class(name, self._asyncapi["components"]["messages"][name]["payload"])
        names = ", ".join(f'"{name}"' for name in problems)
        parts = [
            HEAD,
            f"JobStatus = {statuses}\n# The `code` of a problem.\nProblemCode = Literal[{names}]",
            *self._classes.values(),
            f"# An event: something that happened to a subject.\nEvent = Union[{', '.join(found)}]",
            f"# What `watch` returns.\nTiding = Union[Event, {', '.join(CONTROL)}]",
        ]
        # A type that is a name of its own is shown as such.
        body = "\n\n\n".join(part.strip("\n") for part in parts[1:])
        body = body.replace(f": {statuses}\n", ": JobStatus\n").replace(f": {types}\n", ": str\n")
        return f"{HEAD}\n{body}\n"

    def _named(self, name: str) -> None:
        if name not in self._classes:
            self._class(name, self._schemas[name])

    def _class(self, name: str, schema: Schema) -> None:
        self._classes[name] = ""
        bases, alternatives, fields, required = [], [], {}, set()
        for part in schema.get("allOf", [schema]):
            if "anyOf" in part:
                # The state as of its last event, which is one of these.
                alternatives = [one["$ref"].rsplit("/", 1)[1] for one in part["anyOf"]]
            elif "$ref" in part:
                bases.append(part["$ref"].rsplit("/", 1)[1])
                self._named(bases[-1])
            else:
                fields |= part.get("properties", {})
                required |= set(part.get("required", ()))
                schema = {**part, **schema}
        types = {field: self._type(name + "".join(word.title() for word in field.split("_")), one) for field, one in fields.items()}
        always = {field: one for field, one in types.items() if field in required}
        sometimes = {field: one for field, one in types.items() if field not in required}
        text = ""
        if alternatives:
            assert not sometimes, f"{name} has alternatives and fields that may be absent"
            text = f"class _{name}(TypedDict):\n{docstring(schema)}{lines(always)}\n\n\n"
            text += "".join(f"class {after(name, one)}({one}, _{name}):\n    pass\n\n\n" for one in alternatives)
            del self._classes[name]
            self._classes[name] = f"{text}# A state as of its last event, which is one of these.\n{name} = Union[{', '.join(after(name, one) for one in alternatives)}]"
            return
        if always and sometimes:
            text = f"class _{name}(TypedDict):\n{lines(always)}\n\n\n" if not bases else ""
            bases = [*bases, f"_{name}"] if text else bases
            assert text, f"{name} has a base class and fields that may be absent"
        own, total = (sometimes, ", total=False") if sometimes else (always, "")
        # Types that others refer to come first.
        del self._classes[name]
        self._classes[name] = f"{text}class {name}({', '.join(bases) or 'TypedDict'}{total}):\n{docstring(schema)}{lines(own) or '    pass'}"

    def _type(self, name: str, schema: Schema) -> str:
        if "$ref" in schema:
            own = schema["$ref"].rsplit("/", 1)[1]
            target = self._schemas[own]
            if "properties" not in target and "allOf" not in target:
                return self._type(own, target)
            self._named(own)
            return own
        for word in ("oneOf", "anyOf"):
            if word in schema:
                return union([self._type(name, one) for one in schema[word]])
        if len(schema.get("allOf", ())) == 1:
            return self._type(name, schema["allOf"][0])
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            # The client asks for statuses in lower case.
            shown = [value for value in values if not isinstance(value, str) or value == value.lower()]
            return union([f"Literal[{'True' if value is True else json.dumps(value)}]" if value is not None else "None" for value in shown])
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if "string" in kinds:
            # Nor for ids as numbers.
            kinds = [kind for kind in kinds if kind != "integer"]
        return union([self._plain(name, kind, schema) for kind in kinds]) or "Any"

    def _plain(self, name: str, kind: str, schema: Schema) -> str:
        if kind == "object" and schema.get("properties"):
            self._class(name, schema)
            return name
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"dict[str, {self._type(name, schema['additionalProperties'])}]"
        if kind == "array" and "items" in schema:
            return f"list[{self._type(name.removesuffix('s'), schema['items'])}]"
        return PLAIN[kind]


def about_of(schema: Schema) -> str:
    return str(schema.get("description", "")).replace("\\", "\\\\")


def docstring(schema: Schema) -> str:
    return textwrap.indent(f'"""{about_of(schema)}"""', "    ") + "\n\n" if about_of(schema) else ""


def lines(fields: dict[str, str]) -> str:
    return "\n".join(f"    {field}: {one}" for field, one in fields.items())


def fields_of(schema: Any, place: str = "") -> Iterator[tuple[str, bool]]:
    """Yields the path of each field of a schema without references, and whether it is always there."""
    if isinstance(schema, list):
        for one in schema:
            yield from fields_of(one, place)
    elif isinstance(schema, dict):
        for name, one in schema.get("properties", {}).items():
            yield f"{place}/{name}", name in schema.get("required", ())
            yield from fields_of(one, f"{place}/{name}")
        for word in ("allOf", "anyOf", "oneOf", "items", "additionalProperties"):
            yield from fields_of(schema.get(word), place)
