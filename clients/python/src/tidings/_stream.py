"""What a reader knows between its connections, without I/O: cursor, repetitions, waits and the choice of the transport.

A driver opens the next connection over `transport`, with `cursor`, passes each message to `receive`, and tells how the connection ended:
`cut`, `rejected`, `ended_early` or `unusable`, which return how long to wait. The test vectors in `clients/vectors` fix the rules.

1. Each event is delivered once, in the order of the log.
2. The cursor is that of the last event, `ready` or `heartbeat`, so that a new connection continues behind it.
3. What cannot be read ends the connection, and the next one starts in front of it: nothing is skipped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote, unquote_plus

Message = dict[str, Any]
Transport = Literal["sse", "websocket", "poll"]

HEARTBEAT_DEFAULT_SECS = 15.0
# A proxy that buffers the stream holds the first message back.
FIRST_MESSAGE_SECS = 10.0
POLL_WAIT_SECS = 25
# The least time from the start of one poll to the start of the next: each event completes a poll.
POLL_GAP_SECS = 0.1
PAUSE_MIN_SECS, PAUSE_MAX_SECS = 1.0, 30.0
PERMANENT = frozenset({400, 403, 404, 422})
# Statuses with which a server or proxy says that it does not serve this transport.
NO_SUCH_TRANSPORT = frozenset({406, 426, 501})
UNAUTHORIZED_MAX = 3
# Accepted connections in a row without a message, after which the next transport is tried.
EARLY_ENDS_MAX = 2
# How long a reader stays with another transport than the preferred one before a new connection tries that again.
FALLBACK_SECS = 600.0
CLOSED_DONE, CLOSED_TOKEN_EXPIRED = 1000, 4401
# Closes after which a client may return, but not with a token that has expired by then: a fresh one helps.
CLOSED_RENEWED = frozenset({1001, 1002, 1007, 1011, 1013, CLOSED_TOKEN_EXPIRED, 4408})


class TidingsError(Exception):
    """An error of this package."""


class Rejected(TidingsError):
    """The server rejected the request, and a retry would change nothing.

    `status` is that of HTTP; `code` is the name of the problem (such as `not-found`), if the answer is one."""

    def __init__(self, status: int, code: str | None = None, detail: str = "") -> None:
        super().__init__(f"{status} {code or ''}: {detail}".replace(" :", ":"))
        self.status, self.code, self.detail = status, code, detail


class Closed(TidingsError):
    """The server ended the stream and said that a new connection is useless. `code` is the close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason


class Unreadable(TidingsError):
    """The connection carried something other than a message of Tidings."""


class Backoff:
    """Pauses of 1, 2, 4, … 30 s with jitter, so that readers do not all return at the same moment."""

    def __init__(self, min_secs: float = PAUSE_MIN_SECS, max_secs: float = PAUSE_MAX_SECS) -> None:
        self._min, self._max = min_secs, max_secs
        self._next = min_secs

    def reset(self) -> None:
        self._next = self._min

    def pause(self, at_least: float = 0.0) -> float:
        pause, self._next = self._next, min(self._next * 2, self._max)
        return max(at_least, pause) * random.uniform(1.0, 1.5)


class Stream:
    """The state of one reader. `token_renews`: whether another connection would bring another token."""

    def __init__(
        self,
        transports: Sequence[Transport] = ("sse", "websocket", "poll"),
        cursor: str | None = None,
        token_renews: bool = True,
        backoff: Backoff | None = None,
    ) -> None:
        self.cursor: str | None = cursor or None
        self.heartbeat_secs = HEARTBEAT_DEFAULT_SECS
        self.is_connected = False
        self.is_done = False
        self.closing: Message | None = None
        if not transports:
            raise ValueError("`transports` is empty; it accepts `sse`, `websocket` and `poll`")
        self._preferred: list[Transport] = list(transports)
        self._transports = list(transports)
        self._early_ends = 0
        self._now = self._fell_back_at = 0.0
        self._was_ready = False
        self._unusable: set[str] = set()
        self._token_renews = token_renews
        self._backoff = backoff or Backoff()
        self._last_seq = 0
        self.is_ready = False
        self._unauthorized = 0

    @property
    def transport(self) -> Transport:
        return self._transports[0]

    @property
    def silence_secs(self) -> float:
        """How long a connection may be silent before it counts as dead."""
        if self.transport == "poll":
            # A proxy that buffers may hold back the white space that is the heartbeat of a poll.
            return max(2 * self.heartbeat_secs, POLL_WAIT_SECS + FIRST_MESSAGE_SECS)
        return 2 * self.heartbeat_secs if self.is_connected else FIRST_MESSAGE_SECS

    def connecting(self, now: float) -> None:
        """A connection begins, at `now` seconds of a monotonic clock."""
        self.is_connected, self.closing, self._was_ready = False, None, False
        if now - self._fell_back_at >= FALLBACK_SECS:
            self._transports = list(self._preferred)
        self._now = now

    def receive(self, message: object) -> Message | None:
        """Takes a message and returns it if the application gets it."""
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise Unreadable(f"not a message: {str(message)[:100]}")
        self.is_connected = True
        self._unusable.clear()
        self._unauthorized = self._early_ends = 0
        if "seq" in message:
            return self._event(message)
        match message["type"]:
            case "connected":
                interval = message.get("heartbeat_secs")
                self.heartbeat_secs = float(interval) if isinstance(interval, (int, float)) and interval > 0 else HEARTBEAT_DEFAULT_SECS
            case "heartbeat":
                self._move(message)
            case "ready":
                self._move(message)
                self._backoff.reset()
                self._was_ready = True
                was_ready, self.is_ready = self.is_ready, True
                return None if was_ready else message
            case "reset":
                # The history behind a reset is another one, and its numbers may be lower.
                self.cursor, self._last_seq, self.is_ready = None, 0, False
                return message
            case "closing":
                self.closing = message
        return None

    def _event(self, message: Message) -> Message | None:
        seq = message["seq"]
        if not isinstance(seq, int) or not isinstance(message.get("cursor"), str):
            raise Unreadable("an event without a number or cursor")
        if seq <= self._last_seq:
            return None
        self._last_seq = seq
        self._backoff.reset()
        self._move(message)
        return message

    def _move(self, message: Message) -> None:
        if isinstance(message.get("cursor"), str):
            self.cursor = message["cursor"]

    def polled(self, now: float, gap: float) -> float:
        """The answer to a poll is complete, at `now`. Returns the pause before the next one, which begins `gap` seconds after this one at the earliest."""
        return max(0.0, self._now + gap - now)

    def cut(self) -> float:
        """The connection ended. Returns the pause before the next one, in seconds. Raises `Closed`."""
        closing, self.closing = self.closing, None
        if closing is None:
            return self._backoff.pause()
        at_once = self._was_ready  # Otherwise a token that expires at once would cause a busy loop.
        code, retry_ms = closing.get("code"), closing.get("retry_ms")
        after = retry_ms / 1000 if isinstance(retry_ms, (int, float)) else 0.0
        code = code if isinstance(code, int) else 0
        if code == CLOSED_DONE and not closing.get("reconnect"):
            self.is_done = True
            return 0.0
        may_return = closing.get("reconnect") or (self._token_renews and code in CLOSED_RENEWED)
        if not may_return:
            raise Closed(code, str(closing.get("reason") or ""))
        if code == CLOSED_TOKEN_EXPIRED and at_once:
            return after
        # The server spreads `retry_ms` over its clients. Jitter keeps others apart.
        return after * random.uniform(1.0, 1.2) if after else self._backoff.pause()

    def rejected(self, status: int, problem: Mapping[str, Any], retry_after: str | None = None) -> float:
        """The request was rejected. Returns the pause before the next one. Raises `Rejected`."""
        if status in NO_SUCH_TRANSPORT:
            return self.unusable(Rejected(status, problem.get("code"), str(problem.get("detail") or "")))
        self._unauthorized = self._unauthorized + 1 if status == 401 else 0
        tries = UNAUTHORIZED_MAX if self._token_renews else 1
        if status in PERMANENT or self._unauthorized >= tries:
            raise Rejected(status, problem.get("code"), str(problem.get("detail") or ""))
        if self._unauthorized == 1:
            return 0.0
        return self._backoff.pause(seconds(retry_after))

    def ended_early(self) -> float:
        """An accepted connection ended without a message: a restart, or a proxy that cuts streams."""
        self._early_ends += 1
        return self.unusable() if self._early_ends >= EARLY_ENDS_MAX else self._backoff.pause()

    def unusable(self, why: TidingsError | None = None) -> float:
        """This transport does not pass through the network. Returns the pause before the next one is tried. Raises `why` if none is left."""
        self._early_ends = 0
        self._fell_back_at = self._now
        self._unusable.add(self.transport)
        self._transports.append(self._transports.pop(0))
        if len(self._unusable) == len(self._transports):
            self._unusable.clear()
            if why is not None:
                raise why
            return self._backoff.pause()
        return 0.0


def seconds(retry_after: str | None) -> float:
    """Returns the seconds of a `Retry-After`. A date, which Tidings does not send, counts as none."""
    try:
        return max(0.0, min(float(retry_after or 0), 3600.0))
    except ValueError:
        return 0.0


def path_of(scope: str | Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Returns the path and the query of a scope: one channel, a channel with a query (`jobs?status=failed`), or several channels."""
    if not isinstance(scope, str):
        return "/events", [("channel", channel) for channel in scope]
    channel, _, query = scope.removeprefix("/events/").partition("?")
    pairs = [tuple(pair.partition("=")[::2]) for pair in query.split("&") if pair]
    return f"/events/{channel}", [(unquote_plus(name), unquote_plus(value)) for name, value in pairs]


def channel(collection: str, subject_id: object) -> str:
    """Returns the channel of one subject: `channel("jobs", "a/b")` is `jobs/a%2Fb`."""
    return f"{collection}/{quote(str(subject_id), safe='')}"
