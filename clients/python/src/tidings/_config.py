"""Where the server is and how this process identifies itself."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Union

URL_DEFAULT = "http://127.0.0.1:8000"
WORKER_MAX_BYTES = 128

# A token, or a function that returns a valid one, which is called for each connection.
Token = Union[str, Callable[[], Union[str, Awaitable[str]]]]


def server_url(url: str | None) -> str:
    """Returns `url`, or that of `TIDINGS_URL`, without a trailing slash."""
    return (url or os.environ.get("TIDINGS_URL") or URL_DEFAULT).rstrip("/")


def default_token(token: Token | None) -> Token:
    return token if token is not None else os.environ.get("TIDINGS_TOKEN", "")


def default_school(school_id: int | None) -> int | None:
    """Returns `school_id`, or that of `TIDINGS_SCHOOL_ID`."""
    text = os.environ.get("TIDINGS_SCHOOL_ID", "")
    if school_id is not None or not text:
        return school_id
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"TIDINGS_SCHOOL_ID is {text!r}; it must be the number of a school") from None


def worker_name() -> str:
    """Returns the name by which the server tells this process from other workers that share a token."""
    host = "".join(letter for letter in socket.gethostname() if letter.isprintable())
    return f"{host[:64]}:{os.getpid()}"


_requests: contextvars.ContextVar[bool] = contextvars.ContextVar("tidings_requests", default=False)


@contextlib.contextmanager
def own_requests() -> Iterator[None]:
    """Keeps the requests of this block out of the log. httpx logs each as information: with reports, five lines a second between those of the work.
    At the level `DEBUG` of the logger `tidings` they are shown."""
    before = _requests.set(True)
    try:
        yield
    finally:
        _requests.reset(before)


def _is_shown(record: logging.LogRecord) -> bool:
    return not _requests.get() or record.levelno >= logging.WARNING or logging.getLogger("tidings").isEnabledFor(logging.DEBUG)


logging.getLogger("httpx").addFilter(_is_shown)
