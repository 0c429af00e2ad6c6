"""Makes any Python value a JSON value that the server accepts, without ever raising an error.

A report must not fail because of what the work puts into it: `NaN` as a loss, a `datetime`, a key that is not a text, an object
that refers to itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

DEPTH_MAX = 32
ITEMS_MAX = 10_000
# The server keeps whole numbers in this range exactly and rejects others.
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**64 - 1


def text(value: object) -> str:
    """Returns `str(value)`, also for objects that have no text."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def cut(value: object, max_bytes: int) -> str:
    """Returns a text of at most `max_bytes` bytes in UTF-8."""
    whole = text(value)
    encoded = whole.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return whole
    ellipsis = "…"
    return encoded[: max_bytes - len(ellipsis.encode())].decode("utf-8", "ignore") + ellipsis


def jsonable(value: Any, depth: int = DEPTH_MAX) -> Any:
    """Returns `value` as JSON: what JSON lacks becomes a text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if INTEGER_MIN <= value <= INTEGER_MAX else text(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else text(float(value))
    if depth <= 0:
        return text(type(value).__name__)
    try:
        if isinstance(value, Mapping):
            return {text(name): jsonable(item, depth - 1) for name, item in list(value.items())[:ITEMS_MAX]}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [jsonable(item, depth - 1) for item in _first(value)]
        if hasattr(value, "item") and getattr(value, "size", 1) == 1:
            # A scalar of NumPy, PyTorch or JAX.
            return jsonable(value.item(), depth - 1)
    except Exception:
        return f"<{type(value).__name__}>"
    return text(value)


def _first(values: Iterable[Any]) -> list[Any]:
    return [item for item, _ in zip(values, range(ITEMS_MAX))]


def number(value: Any) -> float | None:
    """Returns a finite number, or None if `value` is not one."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
