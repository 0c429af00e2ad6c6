"""RQ jobs as jobs, under their ids.

>>> queue = Queue(connection=redis, job_class=TidingsJob)
>>> queue.enqueue(import_rows, rows)

and `rq worker --job-class tidings.integrations.rq.TidingsJob`. Within the function, `tidings.current_job()` is the job.
"""

from __future__ import annotations

from typing import Any

from rq.job import Job as RqJob

from . import _tasks

_runs = _tasks.Runs()


class TidingsJob(RqJob):
    """An RQ job that is reported: queued when it is created, and its start and end in the worker."""

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> Any:
        job = super().create(*args, **kwargs)
        _runs.queued(job.id, job.func_name)
        return job

    def perform(self) -> Any:
        name = self.func_name or "rq"
        _runs.started(self.id, name)
        try:
            result = super().perform()
        except BaseException as error:
            if self.retries_left:
                _runs.waits(self.id, name, error)
            else:
                _runs.failed(self.id, name, error)
            raise
        else:
            _runs.completed(self.id, name, result)
            return result
        finally:
            # The process of a job ends without `atexit`.
            _tasks.flush_run()
