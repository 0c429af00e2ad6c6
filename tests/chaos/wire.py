"""A client of Tidings that shares no code with the server: HTTP/1.1, Server-Sent Events and long polls over plain sockets, WebSockets
through `websockets`. On every stream, `next()` returns one message, and `cut()` drops the connection without closing it."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from urllib.parse import quote

import websockets

# Time-out for anything that must happen while the server runs.
PATIENCE_SECS = 30.0
LONGEST_LINE = 64 * 1024 * 1024


class Gone(Exception):
    """The connection failed or ended."""


class Refused(Exception):
    """A response with an error status."""

    def __init__(self, status, body):
        super().__init__(f"{status} {body[:300]!r}")
        self.status, self.body = status, body


# Clocks jump here.
TEN_YEARS_SECS = 315_360_000


def token(secret, school, role="worker", secs=TEN_YEARS_SECS):

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    claims = {"sub": f"{role}-{school}", "school_id": school, "role": role, "exp": int(time.time()) + secs}
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    signature = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + part(signature)).decode()


async def _open(port):
    try:
        return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, limit=LONGEST_LINE), PATIENCE_SECS)
    except (OSError, asyncio.TimeoutError) as error:
        raise Gone(f"cannot connect: {error}") from error


def _head(method, path, token, headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _read_head(reader):
    status = (await _line(reader)).split(b" ")
    headers = {}
    while line := await _line(reader):
        name, _, value = line.partition(b":")
        headers[name.decode().lower()] = value.strip().decode()
    return int(status[1]), headers


async def _line(reader):
    line = await reader.readline()
    if not line.endswith(b"\r\n"):
        raise Gone("the connection ended within a head")
    return line[:-2]


async def _body(reader, headers):
    """Returns the whole body; the connection closes after it."""
    if "chunked" in headers.get("transfer-encoding", ""):
        return b"".join([chunk async for chunk in _chunks(reader)])
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read()


async def _chunks(reader):
    while size := int((await _line(reader)).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def request(port, method, path, token, body=None, headers=None, abandon=None):
    """Returns the status and the body. With `abandon`, the connection is aborted that many seconds after the request was sent, unless
    the response has arrived."""
    reader, writer = await _open(port)
    try:
        headers = {"Connection": "close", **(headers or {})}
        if body is not None:
            headers |= {"Content-Length": len(body), "Content-Type": "application/json"}
        writer.write(_head(method, path, token, headers) + (body or b""))

        async def answer():
            status, headers = await _read_head(reader)
            return status, await _body(reader, headers)

        return await asyncio.wait_for(answer(), PATIENCE_SECS if abandon is None else abandon)
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError, IndexError) as error:
        raise Gone(f"no answer: {error!r}") from error
    finally:
        writer.transport.abort()


def _query(path, **more):
    query = "&".join(f"{name}={quote(str(value))}" for name, value in more.items() if value is not None)
    return path + ("&" if "?" in path else "?") + query


class Sse:
    """Server-Sent Events. The cursor is sent as `Last-Event-ID`."""

    name = "sse"

    async def open(self, port, path, token, cursor):
        self.reader, self.writer = await _open(port)
        try:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": cursor} if cursor else {})
            self.writer.write(_head("GET", path, token, headers))
            status, headers = await asyncio.wait_for(_read_head(self.reader), PATIENCE_SECS)
            if status != 200:
                raise Refused(status, await _body(self.reader, headers))
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError, IndexError) as error:
            raise Gone(f"no answer: {error!r}") from error
        self.chunks, self.rest, self.blocks = _chunks(self.reader), b"", []
        return self

    async def next(self):
        while not self.blocks:
            try:
                self.rest += await anext(self.chunks)
            except (OSError, asyncio.IncompleteReadError, StopAsyncIteration, ValueError) as error:
                raise Gone(f"the stream ended: {error!r}") from error
            *self.blocks, self.rest = self.rest.split(b"\n\n")
        fields = [line.partition(b":") for line in self.blocks.pop(0).split(b"\n")]
        values = {name: value.removeprefix(b" ") for name, _, value in fields if name}
        message = json.loads(values[b"data"])
        assert values.get(b"id", message.get("cursor", "").encode()).decode() == message.get("cursor", ""), f"id and cursor differ: {values}"
        return message

    def cut(self):
        self.writer.transport.abort()


class Poll:
    """One long poll. The response's cursor comes last, as a message of type `polled`; then the stream ends."""

    name = "poll"

    async def open(self, port, path, token, cursor):
        path = _query(path, wait=2, cursor=cursor)
        status, body = await request(port, "GET", path, token, headers={"Accept": "application/json"})
        if status != 200:
            raise Refused(status, body)
        answer = json.loads(body)
        self.messages = [*answer["messages"], {"type": "polled", "cursor": answer["cursor"]}]
        return self

    async def next(self):
        if not self.messages:
            raise Gone("the poll is over")
        return self.messages.pop(0)

    def cut(self):
        self.messages = []


class WebSocket:
    """A WebSocket at the URL of the scope."""

    name = "websocket"

    async def open(self, port, path, token, cursor):
        path = _query(path, heartbeat="message", cursor=cursor)
        return await self.connect(port, path, token)

    async def connect(self, port, path, token):
        try:
            self.socket = await websockets.connect(
                f"ws://127.0.0.1:{port}{path}",
                additional_headers={"Authorization": f"Bearer {token}"},
                max_size=None,
                compression=None,
                ping_interval=None,
                open_timeout=PATIENCE_SECS,
            )
        except websockets.InvalidStatus as refused:
            raise Refused(refused.response.status_code, bytes(refused.response.body or b"")) from refused
        except (OSError, asyncio.TimeoutError, websockets.WebSocketException) as error:
            raise Gone(f"cannot connect: {error!r}") from error
        return self

    async def next(self):
        try:
            return json.loads(await self.socket.recv())
        except websockets.ConnectionClosed as closed:
            raise Gone(str(closed)) from closed

    async def send(self, message):
        try:
            await self.socket.send(json.dumps(message))
        except websockets.ConnectionClosed as closed:
            raise Gone(str(closed)) from closed

    def cut(self):
        self.socket.transport.abort()


class Multiplexed(WebSocket):
    """`/ws`: starts without channels. It pings and sends a `subscribe` that is rejected before it subscribes. It has no filters, because a
    subscription cannot have any."""

    name = "multiplexed"

    async def open(self, port, path, token, cursor):
        tail, _, query = path.removeprefix("/events/").partition("?")
        await self.connect(port, f"/ws?heartbeat=message&{query}", token)
        await self.send({"type": "ping"})
        await self.send({"type": "subscribe", "channels": ["nonsense"]})
        await self.send({"type": "ping"})
        await self.send({"type": "subscribe", "channels": [tail]} | ({"cursor": cursor} if cursor else {}))
        return self
