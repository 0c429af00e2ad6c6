"""The Python client as a process of `clients_run.py`, which describes the arguments and the output."""

import asyncio
import json
import sys
import time
from pathlib import Path

import tidings

# How long the last reports may take.
FLUSH_SECS = 120
# The pause between two reports.
PAUSE_SECS = 0.05
# How many jobs end before a publisher waits for the answers.
JOBS_WAITING = 3


def out(line):
    print(json.dumps(line), flush=True)


def token(folder, role):
    return (Path(folder) / role).read_text


class Reader:
    """Prints each message, until the last one has arrived."""

    def __init__(self, url, folder, transport, scope, tick_ms):
        self.state = tidings.State()
        self.watch = tidings.watch(scope, url=url, token=token(folder, "viewer"), transports=[transport], tick_ms=tick_ms)

    def take(self, message):
        """Returns whether it was the last one."""
        out(message)
        self.state.apply(message)
        return message.get("job_id") == "the-end" and message["status"] == "completed"

    def read(self):
        for message in self.watch:
            if self.take(message):
                return

    async def read_asynchronously(self):
        async for message in self.watch:
            if self.take(message):
                return


def watch(url, folder, transport, *more):
    reader = Reader(url, folder, transport, *more)
    if transport == "poll":
        asyncio.run(reader.read_asynchronously())
    else:
        reader.read()
    out({"type": "subjects", "subjects": dict(reader.state)})


def publish(url, folder, name):
    reporter = tidings.configure(url=url, token=token(folder, "worker"))
    number, waiting = 0, []
    while not (Path(folder) / "stop").exists():
        number += 1
        job = tidings.job("chaos", id=f"{name}-{number}").start()
        for step in range(1, 4 + number % 7):
            job.update(step * 10, f"step {step}")
            time.sleep(PAUSE_SECS)
            tell(job)
        if number % 4 == 0:
            job.fail("paper", "jam")
        else:
            job.complete({"number": number})
        waiting.append((job, "failed" if number % 4 == 0 else "completed"))
        if len(waiting) == JOBS_WAITING:
            answered(waiting)
    answered(waiting)
    out({"type": "outbox", "waiting": reporter.waiting + reporter.dropped})


def answered(waiting):
    """Waits until every report has been answered."""
    if not tidings.flush(FLUSH_SECS):
        raise SystemExit("reports are still waiting")
    for job, status in waiting:
        tell(job)
        out({"type": "ended", "job_id": job.id, "status": status})
    waiting.clear()


def tell(job):
    """Prints the last answer about the job."""
    if "cursor" in job.snapshot:
        out({"type": "answered", "event": job.snapshot})


mode, *arguments = sys.argv[1:]
{"watch": watch, "publish": publish}[mode](*arguments)
