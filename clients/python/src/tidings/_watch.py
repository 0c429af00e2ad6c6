"""Reads a scope over SSE, WebSocket or long poll, and stays connected. `_stream` has the rules; this module does the I/O."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import inspect
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from ._config import Token, default_school, default_token, own_requests, server_url
from ._reporter import configured
from ._sse import SseParser
from ._stream import POLL_GAP_SECS, POLL_WAIT_SECS, Backoff, Message, Rejected, Stream, Transport, Unreadable, path_of
from .messages import ProblemCode

log = logging.getLogger("tidings")
CONNECT_SECS = 10.0
# A WebSocket's token is renewed when a fifth of its lifetime is left, at most this long before its end.
RENEW_MAX_SECS = 30.0
# The messages that are read before the caller asks for them.
READ_AHEAD = 16
# The largest event has 280 KiB by default; a server can be configured for more.
MESSAGE_MAX_BYTES = 64 * 1024 * 1024


_T = TypeVar("_T")
_Incoming = AsyncGenerator[object, None]
# `list` is invariant, so this is the type that httpx takes.
_Query = list[tuple[str, "str | int | float | bool | None"]]


def _websockets() -> Any:
    try:
        import websockets.asyncio.client as client
    except ImportError:
        return None
    return client


def default_transports() -> tuple[Transport, ...]:
    """Returns SSE, WebSocket if `websockets` is installed, and long poll."""
    return ("sse", "poll") if _websockets() is None else ("sse", "websocket", "poll")


class _Refusal(Exception):
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status)
        self.status, self.retry_after = status, headers.get("retry-after")
        self.location = headers.get("location") if 300 <= status < 400 else None
        problem = None
        if "json" in headers.get("content-type", ""):
            with contextlib.suppress(ValueError):
                problem = json.loads(body)
        self.problem: dict[str, Any] = problem if isinstance(problem, dict) else {}


class _NotThisTransport(Exception):
    """The answer is not what this transport returns, or nothing arrived: something between client and server does not support it."""


class Watch:
    """The messages of a scope: the present state as snapshots, `ready`, then each event, once and in order, for as long as the caller iterates.

    Iterate it with `for` or with `async for`. `cursor` is the place after the last message that was returned: store it to continue there.
    """

    def __init__(
        self,
        scope: str | Sequence[str],
        *,
        url: str | None = None,
        token: Token | None = None,
        school_id: int | None = None,
        cursor: str | None = None,
        transports: Sequence[Transport] | None = None,
        poll_gap: float = POLL_GAP_SECS,
        params: Mapping[str, object] | None = None,
        client: Callable[[], httpx.AsyncClient] | None = None,
        backoff: Backoff | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        path, query = path_of(scope)
        pairs: _Query = [*query]
        for name, value in (params or {}).items():
            many = value if isinstance(value, (list, tuple)) else [value]
            pairs += [(name, str(item)) for item in many if item is not None]
        # A scope that names its school needs no default.
        is_named = path.startswith("/events/schools/") or any(name == "school_id" or (name == "channel" and str(value).startswith("schools/")) for name, value in pairs)
        # Types and code name statuses in lower case, whichever the server's setting is.
        if all(name != "status_case" for name, _ in pairs):
            pairs.append(("status_case", "lower"))
        # `configure` says where this process reports, and so where it watches. Its token and school are for that server alone.
        own = configured()
        if own and url and server_url(url) != own.url:
            own = None
        if school_id is None and not is_named:
            school_id = own.school_id if own else default_school(None)
        if school_id is not None:
            pairs.append(("school_id", str(school_id)))
        self._url = own.url if own else server_url(url)
        self._path, self._query = path, pairs
        self._token = own._token if own and own._token and token is None else default_token(token)
        self._new_client, self._sleep, self._poll_gap = client or httpx.AsyncClient, sleep, poll_gap
        chosen = default_transports() if transports is None else tuple(transports)
        unknown = set(chosen) - {"sse", "websocket", "poll"}
        if unknown:
            raise ValueError(f"unknown transport {sorted(unknown)[0]!r}; accepted are 'sse', 'websocket' and 'poll'")
        if "websocket" in chosen and _websockets() is None:
            raise ValueError("the transport 'websocket' needs the package `websockets`: pip install 'tidings-client[websocket]'")
        self._stream = Stream(chosen, cursor, callable(self._token), backoff)
        self._is_warned = False

    @property
    def cursor(self) -> str | None:
        """The place after the last message that was returned, or None if nothing was."""
        return self._stream.cursor

    @property
    def transport(self) -> Transport:
        """The transport of the current, or next, connection."""
        return self._stream.transport

    def __aiter__(self) -> AsyncGenerator[Message, None]:
        return self._messages()

    def __iter__(self) -> Iterator[Message]:
        return _in_thread(self._messages())

    async def _messages(self) -> AsyncGenerator[Message, None]:
        stream = self._stream
        async with self._new_client() as client:
            client.timeout = httpx.Timeout(CONNECT_SECS, read=None)
            while not stream.is_done:
                stream.connecting(time.monotonic())
                accepted = False
                try:
                    token = await self._fresh_token()
                    async with _connection(self._open(client, token)) as incoming:
                        while True:
                            item = await asyncio.wait_for(incoming.get(), stream.silence_secs + (0 if accepted else CONNECT_SECS))
                            if isinstance(item, _End):
                                if item.error is not None:
                                    raise item.error
                                break
                            if item is _ACCEPTED:
                                accepted = True
                                continue
                            if item is _ALIVE:
                                continue
                            message = stream.receive(item)
                            self._is_warned = False  # This outage, if it was one, is over.
                            if message is not None:
                                yield message
                            if stream.closing is not None:
                                break
                    if stream.transport == "poll" and stream.is_connected and stream.closing is None:
                        await self._sleep(stream.polled(time.monotonic(), self._poll_gap))
                        continue
                    if stream.is_connected or not accepted:
                        pause = stream.cut()
                    else:
                        pause = stream.ended_early()
                        self._lost("the connection ended before its first message", pause)
                except _Refusal as refusal:
                    if refusal.location and not stream.is_ready:
                        # The URL is wrong. Later, it may be a page that the server's proxy shows for a while.
                        raise Rejected(refusal.status, None, f"it redirects to {refusal.location}, which is not followed; use that URL") from refusal
                    pause = stream.rejected(refusal.status, refusal.problem, refusal.retry_after)
                    self._lost(refusal.problem.get("detail") or f"status {refusal.status}", pause)
                except _NotThisTransport as why:
                    log.debug("%s does not work here: %s", stream.transport, why)
                    pause = stream.unusable()
                    self._lost(why, pause)
                except (asyncio.TimeoutError, TimeoutError):
                    pause = stream.cut() if stream.is_connected or not accepted else stream.unusable()
                    self._lost("it is silent", pause)
                except httpx.UnsupportedProtocol:
                    raise
                except (httpx.HTTPError, OSError, EOFError, Unreadable) as error:
                    pause = stream.cut() if stream.is_connected or not accepted else stream.ended_early()
                    self._lost(str(error) or repr(error), pause)
                if not stream.is_done:
                    await self._sleep(pause)

    def _lost(self, why: object, pause: float) -> None:
        """Logs why there is no connection: one warning for each outage, because a reader that only waits does not learn it otherwise."""
        level = logging.DEBUG if self._stream.is_connected or self._is_warned or not pause else logging.WARNING
        self._is_warned = self._is_warned or level == logging.WARNING
        log.log(level, "cannot watch %s%s, and tries again: %s", self._url, self._path, why)

    async def _fresh_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        try:
            token = self._token()
            return await token if inspect.isawaitable(token) else token
        except Exception as error:
            log.warning("the token callback failed, and is called again later: %r", error)
            raise OSError("no token") from error

    def _headers(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _open(self, client: httpx.AsyncClient, token: str) -> _Incoming:
        match self._stream.transport:
            case "sse":
                return self._open_sse(client, token)
            case "poll":
                return self._open_poll(client, token)
            case _:
                return self._open_websocket(token)

    async def _open_sse(self, client: httpx.AsyncClient, token: str) -> _Incoming:
        headers = {**self._headers(token), "Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if self._stream.cursor:
            headers["Last-Event-ID"] = self._stream.cursor
        async with client.stream("GET", self._url + self._path, params=self._query, headers=headers) as response:
            await _check(response, "text/event-stream")
            yield _ACCEPTED
            parser, has_begun = SseParser(), False
            async for chunk in response.aiter_bytes():
                events = parser.feed(chunk)
                # Padding and halves of long events are signs of life, too, once the stream has begun.
                if not events and has_begun:
                    yield _ALIVE
                has_begun = has_begun or bool(events)
                for event in events:
                    yield _parsed(event.data)

    async def _open_poll(self, client: httpx.AsyncClient, token: str) -> _Incoming:
        # The first answer has the present state, also if that is empty: it must not wait for an event.
        query: _Query = [*self._query, ("wait", str(POLL_WAIT_SECS if self._stream.is_ready else 0))]
        headers = {**self._headers(token), "Accept": "application/json"}
        if self._stream.cursor:
            headers["Last-Event-ID"] = self._stream.cursor
        async with client.stream("GET", self._url + self._path, params=query, headers=headers) as response:
            await _check(response, "application/json")
            yield _ACCEPTED
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                yield _ALIVE
        answer = _parsed(bytes(body))
        if not isinstance(answer, dict) or not isinstance(answer.get("messages"), list):
            raise Unreadable("the answer to a poll has no messages")
        for message in answer["messages"]:
            yield message

    async def _open_websocket(self, token: str) -> _Incoming:
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

        query: _Query = [*self._query, ("heartbeat", "message")]
        if self._stream.cursor:
            # A foreign `cursor` is an error, but a foreign `lastEventId` is answered with a `reset`.
            query.append(("lastEventId", self._stream.cursor))
        url = httpx.URL(self._url + self._path, params=query)
        address = str(url.copy_with(scheme={"https": "wss", "http": "ws"}.get(url.scheme, url.scheme)))
        try:
            connection = await _websockets().connect(
                address,
                additional_headers=self._headers(token),
                open_timeout=CONNECT_SECS,
                close_timeout=1,
                ping_interval=None,
                max_size=MESSAGE_MAX_BYTES,
                compression=None,
            )
        except InvalidStatus as error:
            answer = error.response
            if 200 <= answer.status_code < 300:
                raise _NotThisTransport(f"status {answer.status_code} in place of an upgrade") from error
            headers = {name.lower(): value for name, value in answer.headers.raw_items()}
            refusal = _Refusal(answer.status_code, headers, bytes(answer.body or b""))
            if not refusal.problem and answer.status_code in (400, 403, 404, 405):
                # Tidings answers with a problem. Something else does not let an upgrade pass.
                raise _NotThisTransport(f"status {answer.status_code} from something else") from error
            code: ProblemCode | None = refusal.problem.get("code")
            if code == "bad-handshake":
                raise _NotThisTransport("a proxy has broken the handshake") from error
            raise refusal from error
        except InvalidMessage as error:
            raise OSError("the connection ended within the handshake") from error
        except (InvalidHandshake, InvalidURI) as error:
            raise _NotThisTransport(str(error)) from error
        try:
            yield _ACCEPTED
            due: float | None = None
            while True:
                try:
                    data = await asyncio.wait_for(connection.recv(), None if due is None else max(0.1, due - time.monotonic()))
                except ConnectionClosed:
                    return
                except (asyncio.TimeoutError, TimeoutError):
                    # The stream goes on with a fresh token. If that fails, the server closes the stream, and the next connection has one.
                    due = None
                    with contextlib.suppress(OSError, ConnectionClosed):
                        await connection.send(json.dumps({"type": "auth", "token": await self._fresh_token()}))
                    continue
                message = _parsed(data)
                if isinstance(message, dict) and message.get("type") in ("connected", "authenticated") and not isinstance(self._token, str):
                    due = _renewal(message.get("expires_at"))
                yield message
        finally:
            # A close handshake would wait for a peer that may be gone.
            with contextlib.suppress(Exception):
                connection.transport.abort()


_ACCEPTED, _ALIVE = object(), object()


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@contextlib.asynccontextmanager
async def _connection(incoming: _Incoming) -> AsyncIterator[asyncio.Queue[object]]:
    """Reads a connection in one task, from its opening to its end, as the HTTP library demands. What it reads, and then `_End`, is in the queue."""
    queue: asyncio.Queue[object] = asyncio.Queue(READ_AHEAD)

    async def read() -> None:
        error: Exception | None = None
        try:
            with own_requests():
                async with contextlib.aclosing(incoming):
                    async for item in incoming:
                        await queue.put(item)
        except Exception as failure:
            error = failure
        await queue.put(_End(error))

    task = asyncio.create_task(read())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _renewal(expires_at: object) -> float | None:
    """Returns when to renew a token, on the monotonic clock; None if its end is not known."""
    try:
        left = datetime.datetime.fromisoformat(str(expires_at).replace("Z", "+00:00")).timestamp() - time.time()
    except ValueError:
        return None
    return time.monotonic() + left - min(RENEW_MAX_SECS, left / 5)


def _parsed(data: str | bytes) -> object:
    try:
        return json.loads(data)
    except ValueError as error:
        raise Unreadable(f"not JSON: {error}") from error


async def _check(response: httpx.Response, media_type: str) -> None:
    if response.status_code == 200:
        found = response.headers.get("content-type", "")
        if not found.startswith(media_type):
            raise _NotThisTransport(f"`{found}` in place of `{media_type}`")
        return
    try:
        body = await asyncio.wait_for(response.aread(), CONNECT_SECS)
    except (httpx.HTTPError, asyncio.TimeoutError, TimeoutError):
        body = b""
    if 200 < response.status_code < 300:
        raise _NotThisTransport(f"status {response.status_code}")
    raise _Refusal(response.status_code, response.headers, body)


def _in_thread(messages: AsyncGenerator[Message, None]) -> Iterator[Message]:
    """Iterates on an event loop in a thread of its own: heartbeats are answered while the caller works, and the caller may have a running loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tidings-watch", daemon=True)
    thread.start()

    def run(step: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(step, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def following() -> Message | None:
        return await anext(messages, None)

    try:
        while (message := run(following())) is not None:
            yield message
    finally:
        with contextlib.suppress(Exception):
            run(messages.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CONNECT_SECS)
        if not loop.is_running():
            loop.close()


def watch(
    scope: str | Sequence[str],
    *,
    url: str | None = None,
    token: Token | None = None,
    school_id: int | None = None,
    cursor: str | None = None,
    transports: Sequence[Transport] | None = None,
    poll_gap: float = POLL_GAP_SECS,
    **params: object,
) -> Watch:
    """Returns the messages of a scope, for `for` or `async for`.

    - `scope`: a channel (`"jobs"`, `"jobs/42"`, `"devices"`, `"schools/1"`), a channel with a query (`"jobs?status=failed"`), or a list of channels.
    - `url`, `token`, `school_id`: the server, a token and the school; those of `tidings.configure` if absent, or `TIDINGS_URL`, `TIDINGS_TOKEN` and `TIDINGS_SCHOOL_ID`. With the `url` of
      another server than that of `tidings.configure`, token and school are those of the environment. A function as `token` is called for each connection (and before a WebSocket's token expires), so that the stream outlives its first token.
    - `cursor`: continue after this place instead of starting with the present state.
    - `transports`: those to try, in this order. The default is SSE, WebSocket (if the package `websockets` is installed) and long poll.
    - `poll_gap`: the least time from the start of one long poll to the start of the next, in seconds. What happens meanwhile comes with the next one.
    - `params`: filters and options of the URL, such as `job_type=["import", "export"]`, `status="failed"`, `tick_ms=0`. Statuses come in lower case, as the types name them, unless
      `status_case="upper"` is given.

    Messages are dictionaries: events (`message["seq"]` is set), `{"type": "ready"}` when the present state is complete, and `{"type": "reset"}` when
    what is known must be discarded, because a complete snapshot follows. Raises `Rejected` or `Closed` if going on is useless.
    """
    return Watch(scope, url=url, token=token, school_id=school_id, cursor=cursor, transports=transports, poll_gap=poll_gap, params=params)



