"""Log records as messages of a job.

>>> logging.getLogger("importer").addHandler(JobHandler(job))
"""

from __future__ import annotations

import logging

from .._job import Job, current_job

# Their records are about the reports themselves.
_OWN = ("tidings", "httpx", "httpcore")


class JobHandler(logging.Handler):
    """Reports each record as the job's message. A warning or an error also stays in its `metadata`, as `warning` or `error_log`.
    Without a job it is that of the `with` block or task that logs; records outside of one are ignored."""

    def __init__(self, job: Job | None = None, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._job = job

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in _OWN:
            return
        job = self._job or current_job()
        if job is None:
            return
        try:
            message = self.format(record)
        except Exception:
            self.handleError(record)
            return
        kept = None
        if record.levelno >= logging.WARNING:
            kept = {"error_log" if record.levelno >= logging.ERROR else "warning": message[:1000]}
        job.update(message=message, metadata=kept)
