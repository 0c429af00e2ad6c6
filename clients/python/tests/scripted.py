"""A server that follows the script of a test vector, over SSE, WebSocket or long poll."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TIMEOUT_SECS = 20


class Request:
    def __init__(self, head: str, waited_secs: float, silent_secs: float) -> None:
        first, *lines = head.split("\r\n")
        self.target = first.split(" ")[1]
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        self.query = dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))
        self.waited_secs, self.silent_secs = waited_secs, silent_secs

    def cursors(self) -> dict[str, str]:
        found = {"Last-Event-ID": self.headers.get("last-event-id"), "lastEventId": self.query.get("lastEventId"), "cursor": self.query.get("cursor")}
        return {place: value for place, value in found.items() if value}


class ScriptedServer:
    """`slept` is the reader's own account of its waits, because its clock is simulated."""

    def __init__(self, case: dict[str, Any], transport: str) -> None:
        self.case, self.transport = case, transport
        self.requests: list[Request] = []
        self.complete = asyncio.Event()
        self.slept = 0.0
        self._held: list[asyncio.StreamWriter] = []
        self._last_byte = 0.0

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._held:
            writer.transport.abort()

    async def sleep(self, secs: float) -> None:
        self.slept += secs

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._held.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                request = Request(head, self.slept, self.slept + time.monotonic() - self._last_byte)
                self.slept = 0.0
                self.requests.append(request)
                if len(self.requests) > len(self.case["connections"]):
                    self.complete.set()
                    return
                if not await self._follow(request, writer):
                    return

    async def _follow(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection takes another request."""
        script = self.case["connections"][len(self.requests) - 1]
        if script.get("status", 200) != 200:
            body = json.dumps(script["problem"]) if "problem" in script else script.get("body", "")
            kind = "application/problem+json" if "problem" in script else "text/html"
            headers = {"content-type": kind, "content-length": str(len(body.encode())), **script.get("headers", {})}
            writer.write(_head(f"{script['status']} Rejected", headers) + body.encode())
            await writer.drain()
            return True
        await getattr(self, f"_{self.transport}")(request, script, writer)
        self._last_byte = time.monotonic()
        if self.transport == "poll":
            return True
        is_last = len(self.requests) == len(self.case["connections"])
        if script["end"] == "cut" or (script["end"] == "open" and is_last):
            await writer.drain()
            writer.close()
        elif script["end"] == "close":
            if self.transport == "websocket":
                writer.write(_frame(8, script["close_code"].to_bytes(2, "big")))
            writer.close()
        return False

    async def _sse(self, request: Request, script: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(_head("200 OK", {"content-type": "text/event-stream", "connection": "close"}))
        for message in script["send"]:
            data = message["raw"] if "raw" in message else json.dumps(message, ensure_ascii=False)
            block = f"data: {data}\n\n"
            if "cursor" in message and message["type"] != "connected":
                block = f"id: {message['cursor']}\n{block}"
            if message.get("type") == "heartbeat":
                block = f"event: heartbeat\n{block}"
            writer.write(block.encode())

    async def _websocket(self, request: Request, script: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        writer.write(_head("101 Switching Protocols", {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": accept}))
        for message in script["send"]:
            writer.write(_frame(1, (message["raw"] if "raw" in message else json.dumps(message, ensure_ascii=False)).encode()))

    async def _poll(self, request: Request, script: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        messages = script["send"]
        cursor = next(iter(request.cursors().values()), None)
        for message in messages:
            if message["type"] == "ready" or "seq" in message or (message["type"] == "connected" and cursor is None):
                cursor = message["cursor"]
        body = json.dumps({"messages": messages, "cursor": cursor}).encode()
        writer.write(_head("200 OK", {"content-type": "application/json", "content-length": str(len(body))}) + body)


def _head(status: str, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode()


def _frame(opcode: int, payload: bytes) -> bytes:
    if len(payload) < 126:
        return bytes([0x80 | opcode, len(payload)]) + payload
    return bytes([0x80 | opcode, 126]) + len(payload).to_bytes(2, "big") + payload
