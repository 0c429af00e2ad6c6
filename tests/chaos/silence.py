"""Jobs with short limits of silence, and what must hold of them whatever happens to the nodes: a job that its publisher abandons is stalled
and then fails, once each, and a job that is reported in time does neither. Other jobs here have no limits."""

from datetime import datetime

import wire
from ledger import Broken

STALL_SECS, TIMEOUT_SECS = 5, 15
LIMITS = {"stall_after_secs": STALL_SECS, "timeout_secs": TIMEOUT_SECS}
ABANDONED, REPORTED = "abandoned-", "reported-"
# A node that was suspended, or starved of CPU time, takes its time from what the others have reported, each every two seconds. If they could
# not, its clock is behind by the suspension until it has exchanged reports with them, which needs some seconds without a fault.
SKEW_SECS, EXCHANGE_SECS = 3, 5
# A watchdog looks every second. It needs this long without a fault, with the time to connect again, and with the 4 s after which Postgres ends
# the transaction of another node that is suspended or cut off. Two such transactions may follow each other, but with the time for both, hardly
# any job would be judged: it fails ten seconds after it is stalled.
LOOK_SECS = 7
# How long after the run the last abandoned job may take to fail.
END_SECS = TIMEOUT_SECS + 4 * wire.PATIENCE_SECS


def is_limited(job):
    return job.startswith((ABANDONED, REPORTED))


def timestamp_of(event):
    return datetime.fromisoformat(event.timestamp).timestamp()


def found_silent(event, earlier):
    """Returns what an event says of the silence of its job: `stalled`, `timeout` or nothing."""
    if event.code == "timeout":
        return "timeout"
    return "stalled" if event.is_stalled and not (earlier and earlier.is_stalled) else None


class Watch:
    """One job, along a log."""

    def __init__(self, job, run):
        self.job, self.run, self.heard, self.latest = job, run, None, None
        self.stalled_at, self.ended_at, self.has_timed_out = None, None, False

    def take(self, seq, event, broken):
        silent = found_silent(event, self.latest)
        if silent and not is_limited(self.job):
            raise broken(f"{self.job} has no limit of silence and is reported as {silent} at {seq}")
        if self.ended_at is not None:
            raise broken(f"{self.job} had ended, and has an event at {seq}")
        at = timestamp_of(event)
        if silent:
            self._is_silent(silent, at, seq, broken)
        elif not event.is_new_estimate_after(self.latest):
            if event.is_stalled:
                raise broken(f"{self.job} is reported as stalled twice, the second time at {seq}")
            self.heard, self.stalled_at = at, None
        if event.status in ("completed", "failed", "cancelled") and is_limited(self.job):
            self.ended_at = at
        self.latest = event

    def _is_silent(self, what, at, seq, broken):
        limit = TIMEOUT_SECS if what == "timeout" else STALL_SECS
        if self.heard is None or at - self.heard < limit - SKEW_SECS - lag(self.run, self.heard):
            raise broken(f"{self.job} is reported as {what} at {seq}, and was reported less than {limit} s before")
        if what == "stalled":
            self.stalled_at = at
        else:
            self.has_timed_out = True


def check_silence(run, truth):
    """Checks the jobs of a school in the logs of all lives. Returns how many were stalled and how many timed out, at the end."""
    for life, log in enumerate(truth.logs):
        def broken(what, life=life):
            return Broken(f"school {truth.school.number}, life {life}: {what}")

        watches = {}
        for seq, (_, event) in log.items():
            if event.kind == "jobs":
                job = event.subject[1]
                watches.setdefault(job, Watch(job, run)).take(seq, event, broken)
    stalled = timed_out = 0
    for job, watch in watches.items():
        stalled += watch.stalled_at is not None
        timed_out += watch.has_timed_out
        if not job.startswith(ABANDONED):
            continue
        if not watch.has_timed_out:
            raise broken(f"{job} was abandoned, and has not failed")
        if watch.stalled_at is None and could_look(run, watch.heard + STALL_SECS, watch.ended_at):
            raise broken(f"{job} failed at {watch.ended_at} without having been stalled")
    return stalled, timed_out


def lag(run, at):
    """How far the clock of the node that took a report at this time may have been behind."""
    def has_saved(node):
        return all(to < at - SKEW_SECS or began > at for began, to in node.disturbed)

    def suspensions():
        for node in run.nodes:
            if any(has_saved(other) for other in run.nodes if other is not node):
                continue
            for began, to in node.suspended:
                if to <= at + SKEW_SECS and longest_quiet(node, to, at) < EXCHANGE_SECS:
                    yield to - began

    return max(suspensions(), default=0)


def could_look(run, since, until):
    """Whether some node had the time to find out, because nothing happened to it."""
    return any(longest_quiet(node, since, until) >= LOOK_SECS for node in run.nodes)


def longest_quiet(node, since, until):
    """The longest time in between during which nothing happened to a node."""
    longest = 0
    for began, to in [*sorted(node.disturbed), (until, until)]:
        longest = max(longest, min(began, until) - since)
        since = max(since, to)
    return longest
