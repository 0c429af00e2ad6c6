"""What schemathesis does not know by itself."""

import re
import uuid

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def whole(value: object) -> object:
    """Writes whole numbers without a fraction, as the server's documentation asks."""
    if isinstance(value, dict):
        return {name: whole(own) for name, own in value.items()}
    if isinstance(value, list):
        return [whole(own) for own in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if is_whole else value


@schemathesis.hook
def before_call(_: object, case: schemathesis.Case, __: object) -> None:
    """Gives each request a key of its own: a key that was used for another request is rejected."""
    if case.meta is None or case.meta.generation.mode.is_negative:
        return
    # A body that is left out stays so: one that is set is compared with the schema again.
    if isinstance(case.body, (dict, list, float)):
        case.body = whole(case.body)
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!-~]{1,128}", key):
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
