"""Sends reports from a background thread, so that the work is neither delayed nor broken by them.

1. `report` never waits for the network and never raises an error.
2. The queue is bounded (`_outbox`). A server that is down, slow or refusing costs memory up to that bound, and nothing else.
3. A report is repeated with its idempotency key until it is answered, so it takes effect once.
4. At exit, the reporter sends what is left, for at most `flush_secs`; a server that never answered gets a single try.
5. After a fork, the child starts with an empty queue and a thread of its own; the parent's reports remain the parent's.
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing.util
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable

import httpx

from ._config import Token, default_school, default_token, own_requests, server_url, worker_name
from ._outbox import (
    BATCH_LINES,
    CAPACITY,
    CAPACITY_BYTES,
    Body,
    Outbox,
    Report,
    Verdict,
    after_look,
    judge,
)
from ._stream import Backoff, seconds
from ._tokens import TokenSource

log = logging.getLogger("tidings")
FLUSH_SECS = 5.0
REQUEST_SECS = 10.0
CONNECT_SECS = 5.0
# Ticks are sent at most this often.
INTERVAL_SECS = 0.2
# Warnings of one kind are logged at most this often.
WARNING_SECS = 10.0
# Code compares statuses in lower case, whichever the server's setting is.
LOWER_CASE = {"status_case": "lower"}

# Makes and imports what a request needs, in the thread that imports this module. If the process forked while the thread of a reporter imports, or while
# OpenSSL makes a context in it, the child would wait for a lock for ever.
NO_TLS = httpx.create_ssl_context(verify=False)
httpx.Client(verify=NO_TLS, trust_env=False).close()
"localhost".encode("idna")


class Reporter:
    """A queue of reports and the thread that sends them. One per process is enough: see `tidings.configure`."""

    def __init__(
        self,
        url: str | None = None,
        token: Token | None = None,
        *,
        school_id: int | None = None,
        worker: str | None = None,
        capacity: int = CAPACITY,
        capacity_bytes: int = CAPACITY_BYTES,
        interval_secs: float = INTERVAL_SECS,
        flush_secs: float = FLUSH_SECS,
        request_secs: float = REQUEST_SECS,
        backoff: Callable[[], Backoff] = Backoff,
        client: Callable[[], httpx.Client] | None = None,
    ) -> None:
        self.url, self.school_id = server_url(url), school_id
        if school_id is None:
            try:
                self.school_id = default_school(None)
            except ValueError as error:  # The work goes on, whatever the environment is.
                log.warning("reports name no school: %s", error)
        self._token = default_token(token)
        self._source = TokenSource(self._token)
        self._worker = worker
        self._capacity = (capacity, capacity_bytes)
        self._interval_secs, self._flush_secs, self._request_secs = interval_secs, flush_secs, request_secs
        # Made here, and not in the thread: reading certificates takes locks of OpenSSL, which a fork would leave to the child.
        tls: ssl.SSLContext | bool = NO_TLS
        if not self.url.lower().startswith("http:"):
            try:
                tls = httpx.create_ssl_context()
            except Exception as error:
                # The thread meets the same error, and says so for as long as reports wait.
                tls = True
                log.warning("the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read: %r", error)
        self._new_backoff, self._new_client = backoff, client or (lambda: httpx.Client(verify=tls))
        self._reset()
        _reporters.add(self)
        multiprocessing.util.register_after_fork(self, Reporter._close_at_end_of_child)
        atexit.register(_close, weakref.ref(self))

    def _reset(self) -> None:
        """Starts afresh, also in the child of a fork, in which the parent's locks may be held by threads that do not exist."""
        self._changed = threading.Condition(threading.RLock())
        self._outbox = Outbox(*self._capacity)
        self._thread: threading.Thread | None = None
        self._backoff = self._new_backoff()
        self._max_lines = BATCH_LINES
        self._retry_at = self._sent_at = 0.0
        self._flushing = self._failures = 0
        self._reached = self._is_closed = False
        self._warned: dict[str, float] = {}

    # What the work calls.

    @property
    def is_enabled(self) -> bool:
        """Whether there is a token. Without one, reports are discarded."""
        return bool(self._token)

    @property
    def is_failing(self) -> bool:
        """Whether the last request failed, so that answers cannot be expected soon."""
        return self._failures > 0

    @property
    def was_reached(self) -> bool:
        """Whether the server has answered in this process."""
        return self._reached

    @property
    def waiting(self) -> int:
        """The number of reports that have not been answered."""
        return len(self._outbox)

    @property
    def dropped(self) -> int:
        """The number of reports that were given up because there was no room for them, or because they became too old."""
        return self._outbox.dropped

    def report(self, report: Report) -> None:
        """Takes a report. Returns at once."""
        try:
            if not self.is_enabled:
                self._warn("disabled", "reports are discarded, because there is no token: set TIDINGS_TOKEN or call tidings.configure(token=…)")
                return
            with self._changed:
                if self._is_closed:
                    return
                if not self._outbox.offer(report):
                    self._warn("full", "a report was dropped, because %s others wait to be sent", len(self._outbox))
                self._start()
                self._changed.notify_all()
        except Exception as error:  # The work goes on, whatever it reports.
            self._warn("report", "a report was dropped: %r", error)

    def flush(self, timeout: float | None = None, patient: bool = True) -> bool:
        """Waits until everything has been answered, at most `timeout` seconds (`flush_secs` by default). Returns whether it has.
        With `patient=False`, one failed request ends the wait."""
        deadline = time.monotonic() + (self._flush_secs if timeout is None else timeout)
        with self._changed:
            if self._thread is None:
                return len(self._outbox) == 0
            before, self._retry_at = self._failures, 0.0
            self._flushing += 1
            self._changed.notify_all()
            try:
                while len(self._outbox) and self._thread.is_alive():
                    left = deadline - time.monotonic()
                    if left <= 0 or (not patient and self._failures > before):
                        break
                    self._changed.wait(left)
            finally:
                self._flushing -= 1
            return len(self._outbox) == 0

    def close(self, timeout: float | None = None) -> None:
        """Sends what is left, within `timeout` seconds (`flush_secs` by default), and ends the thread. Later reports are discarded."""
        if self._is_closed:
            return
        # A server that never answered does not delay the end of the process.
        self.flush(timeout, patient=self._reached)
        with self._changed:
            self._is_closed = True
            left, dropped = len(self._outbox), self._outbox.dropped
            self._changed.notify_all()
        if left or dropped:
            log.warning("%s reports could not be delivered to %s, and %s were dropped", left, self.url, dropped)

    # The thread.

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="tidings-reporter", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        # Not left to another thread, which the next report would start at once, or which cannot start because the process ends.
        while True:
            try:
                return self._send_all()
            except Exception as error:
                self._failed(0.0, "unreachable", "cannot report to %s, and tries again: %r", self.url, error)
            with self._changed:
                if not self._is_due():
                    return

    def _send_all(self) -> None:
        worker = self._worker or worker_name()
        with self._new_client() as client:
            client.timeout = httpx.Timeout(self._request_secs, connect=min(CONNECT_SECS, self._request_secs))
            while True:
                with self._changed:
                    if not self._is_due():
                        return
                    if self._outbox.expire(time.monotonic()):
                        self._warn("old", "reports were given up, because they could not be delivered for hours")
                    batch = self._outbox.take(worker, time.monotonic(), self._max_lines)
                    self._sent_at = time.monotonic()
                if batch:
                    self._send(client, batch)

    def _is_due(self) -> bool:
        """Waits until the next batch is due. Returns False if the reporter is closed."""
        while (pause := self._due()) != 0 and not self._is_closed:
            self._changed.wait(pause)
        return not self._is_closed

    def _due(self) -> float | None:
        """Returns in how many seconds the next batch is due; None if nothing waits."""
        if not len(self._outbox):
            return None
        due = self._retry_at
        if not self._flushing and self._outbox.milestones == 0:
            due = max(due, self._sent_at + self._interval_secs)
        return max(0.0, due - time.monotonic())

    def _send(self, client: httpx.Client, batch: list[Report]) -> None:
        try:
            body = b"\n".join(report.line or b"" for report in batch)
            headers = {**self._headers(), "Content-Type": "application/x-ndjson"}
            with own_requests():
                response = client.post(f"{self.url}/api/batch", params=LOWER_CASE, content=body, headers=headers)
            status, retry_after = response.status_code, response.headers.get("retry-after")
            results = _lines(response.text) if status == 200 else []
            problem = {} if status == 200 else _problem(response)
        except Exception as error:
            return self._failed(0.0, "unreachable", "cannot report to %s, and tries again: %r", self.url, error)
        if status == 200:
            return self._settle(client, batch, results)
        detail = problem.get("detail") or status
        if status == 401 and self._source.error is not None:
            detail = f"{detail}; the function that returns the token fails: {self._source.error!r}"
        if status in (400, 413, 422) and problem:
            return self._split(batch, str(detail))
        self._failed(seconds(retry_after), f"refused {status}", "%s refuses reports, which are sent again later: %s", self.url, detail)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._source.token()}"}

    def _failed(self, at_least: float, kind: str, *warning: object) -> None:
        with self._changed:
            self._failures += 1
            self._retry_at = time.monotonic() + self._backoff.pause(at_least)
            self._changed.notify_all()
        self._warn(kind, *warning)

    def _split(self, batch: list[Report], detail: str) -> None:
        """The server rejects the batch as a whole: smaller ones find the reason."""
        with self._changed:
            if len(batch) > 1:
                self._max_lines = len(batch) // 2
            else:
                self._max_lines = BATCH_LINES
                self._finish(batch[0], Verdict(warning=detail), None)
            self._changed.notify_all()

    def _settle(self, client: httpx.Client, batch: list[Report], results: list[Body]) -> None:
        verdicts: list[tuple[Report, Verdict, Body | None]] = []
        retry_after, looked_in_vain = 0.0, False
        for report, result in zip(batch, results):
            event, problem = result.get("event") or result.get("device"), result.get("problem") or {}
            verdict = judge(report, int(result.get("status") or 500), event, problem)
            if verdict.look:
                job = self._look(client, report)
                if job is None:
                    looked_in_vain = True
                    verdict = Verdict(is_done=False)
                else:
                    verdict, event = after_look(report, self._worker or worker_name(), job, problem), job
            if not verdict.is_done and not verdict.first and report.line is not None:
                retry_after = max(retry_after, seconds(str(problem.get("retry_after") or 0)), 0.001)
            verdicts.append((report, verdict, event))
        with self._changed:
            if self._max_lines < BATCH_LINES:
                self._max_lines = min(BATCH_LINES, self._max_lines * 2)
            for report, verdict, event in verdicts:
                self._finish(report, verdict, event)
            if retry_after or looked_in_vain or not results:
                self._failures += 1
                self._retry_at = time.monotonic() + self._backoff.pause(retry_after)
            else:
                self._reached, self._failures, self._retry_at = True, 0, 0.0
                self._backoff.reset()
            self._changed.notify_all()

    def _finish(self, report: Report, verdict: Verdict, event: Body | None) -> None:
        if verdict.warning is not None:
            self._warn(verdict.warning, "%s %s: %s", report.subject.path, report.verb, verdict.warning)
        if verdict.first:
            self._outbox.put_first(report, verdict.first)
        if verdict.is_done:
            self._outbox.remove(report)
            if report.is_again and report.job is not None and report.job.is_superseded:
                self._outbox.remove_superseded(report.job)
            if report.answered is not None:
                report.answered(event)

    def _look(self, client: httpx.Client, report: Report) -> Body | None:
        """Reads a job. Returns None if that has to be tried again."""
        school = report.subject.school_id
        try:
            query: dict[str, str | int] = {**LOWER_CASE} if school is None else {**LOWER_CASE, "school_id": school}
            headers = self._headers()
            with own_requests():
                response = client.get(self.url + report.subject.path, params=query, headers=headers)
            if response.status_code == 404:
                return {}
            found = response.json() if response.status_code == 200 else None
        except Exception:
            return None
        return found if isinstance(found, dict) else None

    def _warn(self, kind: str, message: object, *args: object) -> None:
        now = time.monotonic()
        if now - self._warned.get(kind, -WARNING_SECS) < WARNING_SECS:
            return
        if len(self._warned) > 100:
            self._warned.clear()
        self._warned[kind] = now
        log.warning(str(message), *args)

    # Ends of processes that do not run `atexit`.

    def _close_at_end_of_child(self) -> None:
        """The children of `multiprocessing` end without `atexit`."""
        multiprocessing.util.Finalize(self, _close, args=(weakref.ref(self),), exitpriority=10)


_reporters: "weakref.WeakSet[Reporter]" = weakref.WeakSet()


def _close(reference: "weakref.ref[Reporter]") -> None:
    reporter = reference()
    if reporter is not None:
        reporter.close()


def _reset_after_fork() -> None:
    for reporter in list(_reporters):
        reporter._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def _problem(response: httpx.Response) -> Body:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lines(text: str) -> list[Body]:
    """Returns the results of a batch. Raises ValueError if the answer is not from Tidings."""
    found = [json.loads(line) for line in text.split("\n") if line]
    if not all(isinstance(line, dict) and "line" in line for line in found):
        raise ValueError("the answer is not the result of a batch")
    return found


_default: Reporter | None = None
_configured: Reporter | None = None
_default_lock = threading.Lock()


def configure(
    url: str | None = None,
    token: Token | None = None,
    *,
    school_id: int | None = None,
    worker: str | None = None,
    flush_secs: float = FLUSH_SECS,
) -> Reporter:
    """Sets the server and the token of this process, for reports and for `watch`, in place of `TIDINGS_URL` and `TIDINGS_TOKEN`. Returns the reporter.

    A function as `token` is called for each request, for reports in the thread of the reporter. An asynchronous one then runs in an event loop of its own,
    another one for each call: it must not use what belongs to another loop. If it fails, the token that it returned last is used."""
    global _configured, _default
    # Here, where the work has not begun, a wrong setting is an error.
    school_id = default_school(school_id)
    fresh = Reporter(url, token, school_id=school_id, worker=worker, flush_secs=flush_secs)
    with _default_lock:
        former, _default, _configured = _default, fresh, fresh
    if former is not None:
        former.close()
    return fresh


def configured() -> Reporter | None:
    """Returns the reporter that `configure` has made; None if it was never called."""
    return _configured


def reporter() -> Reporter:
    """Returns the reporter of this process."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Reporter()
    return _default


def flush(timeout: float | None = None) -> bool:
    """Waits until all reports have been answered, at most `timeout` seconds (5 by default). Returns whether they have."""
    return True if _default is None else _default.flush(timeout)
