"""A progress bar that is also a job.

>>> from tidings.integrations.tqdm import tqdm
>>> for row in tqdm(rows, desc="Students", job_type="import"):
...     save(row)
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from tqdm.std import tqdm as _tqdm

from .._job import Job, current_job


class tqdm(_tqdm):  # type: ignore[type-arg]
    """Takes the arguments of `tqdm.tqdm`, and `job` (a job to report to) or `job_type` (the type of a new one; `tqdm` by default).

    A bar with a job of its own completes it at the end; one that ends before its `total` cancels it, or fails it after an exception in a `with`
    block. Within the `with` block of another job it reports to that. A disabled bar reports, and shows nothing.
    """

    def __init__(self, iterable: Iterable[Any] | None = None, *args: Any, job: Job | None = None, job_type: str = "tqdm", **options: Any) -> None:
        found = job or current_job()
        self._owns_job = found is None
        self._job: Job | None = None
        disable = options.pop("disable", False)
        if disable is None:
            disable = not getattr(options.get("file") or sys.stderr, "isatty", lambda: False)()
        if disable:
            options["file"] = io.StringIO()
        self._is_hidden = bool(disable)
        super().__init__(iterable, *args, **options)
        self._job = found or Job(job_type, title=self.desc.rstrip(": ") if self.desc else None).start()
        self._report()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        shown = None if self._is_hidden else super().display(msg, pos)
        self._report()
        return shown

    def _report(self) -> None:
        job = getattr(self, "_job", None)
        if job is None:
            return
        unit = self.unit if self.unit == "it" else self.unit.strip()
        of = f"/{self.total}" if self.total else ""
        postfix = f", {self.postfix}" if self.postfix else ""
        job.update(100 * min(self.n / self.total, 1.0) if self.total else None, f"{self.n}{of} {unit}{postfix}")

    def close(self) -> None:
        job, self._job = getattr(self, "_job", None), None
        if job is not None:
            self._job = job
            self._report()
            self._job = None
            if self._owns_job and not job._is_ended:
                if self.total and self.n < self.total:
                    job.cancel(f"Stopped at {self.n}/{self.total}")
                else:
                    job.complete()
        super().close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Any:
        if error is not None and self._owns_job and self._job is not None:
            self._report()
            self._job._end_with(error)
        return super().__exit__(kind, error, trace)


def trange(*args: Any, **options: Any) -> tqdm:
    """A shortcut for `tqdm(range(*args), **options)`."""
    return tqdm(range(*args), **options)
