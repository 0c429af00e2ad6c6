"""A parser of Server-Sent Events without I/O, after the HTML standard (9.2.6)."""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSentEvent:
    """An event with data. `id` is the one in its own block, if any."""

    data: str
    event: str | None = None
    id: str | None = None


class SseParser:
    """Takes the bytes of a stream as they arrive and returns complete events. A block that is cut off is discarded."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._at_start = True
        self._data: list[str] = []
        self._event: str | None = None
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        text = self._decoder.decode(chunk)
        if self._at_start and text:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        text = self._rest + text
        events: list[ServerSentEvent] = []
        start = 0
        while (end := _line_end(text, start)) is not None:
            line, start = text[start : end[0]], end[1]
            event = self._take(line)
            if event is not None:
                events.append(event)
        self._rest = text[start:]
        return events

    def _take(self, line: str) -> ServerSentEvent | None:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._event = value
            elif name == "id" and "\0" not in value:
                self._id = value
            return None
        event = ServerSentEvent("\n".join(self._data), self._event or None, self._id) if self._data else None
        self._data, self._event, self._id = [], None, None
        return event


def _line_end(text: str, start: int) -> tuple[int, int] | None:
    """Returns where the line ends and where the next one starts. `str.splitlines` would also split at U+2028 and others."""
    line_feed, carriage_return = text.find("\n", start), text.find("\r", start)
    if carriage_return == -1 or -1 < line_feed < carriage_return:
        return None if line_feed == -1 else (line_feed, line_feed + 1)
    if carriage_return + 1 == len(text):
        # The line feed of this line end may be in the next chunk.
        return None
    following = 2 if text[carriage_return + 1] == "\n" else 1
    return carriage_return, carriage_return + following
