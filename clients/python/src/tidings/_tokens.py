"""The token of each request of a reporter.

1. The function of the caller is called for each request, in the thread of the reporter. An asynchronous one runs in a loop of its own.
2. If the function fails, the token that it returned last is used, as long as the server accepts it.
3. At exit, Python starts no threads, which `asyncio` uses to look up a host. The look-up is then done in the thread of the reporter.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ._config import Token


class TokenSource:
    def __init__(self, token: Token) -> None:
        self._token = token
        self._last: str | None = None
        # Why the function failed when it was called last.
        self.error: Exception | None = None

    def token(self) -> str:
        """Returns a token. Raises the error of the function if it has never returned one."""
        if isinstance(self._token, str):
            return self._token
        try:
            found = self._token()
            self._last = _result(found) if inspect.isawaitable(found) else found
            self.error = None
        except Exception as error:
            self.error = error
            if self._last is None:
                raise
        return self._last


def _result(awaited: Awaitable[str]) -> str:
    """Returns the result, as `asyncio.run` does, which fails at exit."""

    async def wait() -> str:
        return await awaited

    loop = asyncio.new_event_loop()
    loop.set_default_executor(_Executor())
    try:
        return loop.run_until_complete(wait())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _Executor(ThreadPoolExecutor):
    """Calls functions in threads, or at once if no thread can be started any more."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            done: Future[Any] = Future()
            try:
                done.set_result(fn(*args, **kwargs))
            except Exception as error:
                done.set_exception(error)
            return done
