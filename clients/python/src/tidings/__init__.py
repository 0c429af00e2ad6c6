"""Reports progress to Tidings, and watches it.

>>> with tidings.job("import", title="Students") as job:
...     for row in job.track(rows):
...         save(row)

>>> for message in tidings.watch("jobs"):
...     print(message["type"], message.get("progress"))

`TIDINGS_URL` and `TIDINGS_TOKEN` name the server and the token, or `tidings.configure(url=…, token=…)` does. `tidings.integrations` connects Celery,
RQ, Django, Airflow, tqdm, logging and training loops; `tidings.dropins` replaces broadcasters of existing back ends.
"""

from . import messages
from ._job import Cancelled, Job, Tracked, current_job, job
from ._reporter import Reporter, configure, flush, reporter
from ._state import State
from ._stream import Backoff, Closed, Message, Rejected, TidingsError, Transport, channel
from ._watch import Watch, watch

__all__ = [
    "Backoff",
    "Cancelled",
    "Closed",
    "Job",
    "Message",
    "Rejected",
    "Reporter",
    "State",
    "TidingsError",
    "Tracked",
    "Transport",
    "Watch",
    "channel",
    "configure",
    "current_job",
    "flush",
    "job",
    "messages",
    "reporter",
    "watch",
]
