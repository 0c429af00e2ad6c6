"""What must be true of what was acknowledged and what readers received. Knows the published contract and nothing of the server's code.

A *life* of the log is its epoch. Within one, a number stands for one event, for everybody. An event is compared without `cursor` and
`snapshot`, so that an event of an earlier life, received again in a later one, is the same."""

import hashlib
import json
from collections import deque


class Broken(Exception):
    """A promise that was not kept."""


KINDS = {
    "job_progress": ("jobs", "job_id"),
    "device_status_update": ("devices", "device_id"),
    "device_info_update": ("devices", "device_id"),
    "sample": ("characteristics", "characteristic_id"),
    "violation": ("characteristics", "characteristic_id"),
    "ack_update": ("characteristics", "characteristic_id"),
    "control_limits": ("characteristics", "characteristic_id"),
}


class Event:
    """What is remembered of an event."""

    __slots__ = ("digest", "type", "kind", "subject", "category", "status", "state", "report", "eta_at")

    def __init__(self, message):
        self.type = message["type"]
        self.kind, id_field = KINDS[self.type]
        fields = message.get("payload", message)
        self.subject = (self.kind, str(fields[id_field]))
        self.category = message.get("job_type")
        self.status = message.get("status")
        # A job's event is a milestone if one of these differs from the event before.
        self.state = tuple(message.get(name) for name in ("status", "attempt", "stalled", "cancel_requested"))
        self.digest = _digest(message, "cursor", "snapshot")
        self.report = _digest(message, "cursor", "snapshot", "seq", "timestamp", "eta_at", "eta_low_at", "eta_high_at", "eta_source")
        self.eta_at = message.get("eta_at")

    def is_new_estimate_after(self, earlier):
        """Whether it says nothing but when the job will end. A report that was carried out twice does not look like that: the first
        of its events, which nobody was answered with, differs from the one before."""
        return earlier is not None and self.report == earlier.report and self.eta_at != earlier.eta_at


def _digest(message, *without):
    rest = {name: value for name, value in message.items() if name not in without}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=8).digest()


def place(cursor):
    """The life and number of a cursor."""
    epoch, seq, *_ = cursor.split("-")
    return epoch, int(seq)


class School:
    """What is known of a school's log."""

    def __init__(self, number):
        self.number = number
        self.lives = {}  # epoch -> seq -> Event
        self.acknowledged = []  # (epoch, seq)
        self.latest_of_job = {}  # epoch -> id -> seq: an earlier life's events may be heard late

    def saw(self, message):
        """Takes in an event that somebody received; it must be what everybody else received in its place."""
        epoch, seq = place(message["cursor"])
        if seq != message["seq"] or message["school_id"] != self.number:
            raise Broken(f"school {self.number} received {message}")
        event = Event(message)
        life = self.lives.get(epoch)
        if life is None:
            life = self.lives[epoch] = {}
        if message.get("snapshot"):
            # A state may be without an estimate whose time has passed, and is not what its event was word by word.
            known = life.get(seq)
            if known and event.kind == "jobs" and known.report != event.report:
                raise Broken(f"school {self.number}: the snapshot differs from the event at {epoch}-{seq}: {message}")
            return epoch, seq, event
        known = life.setdefault(seq, event)
        if known.digest != event.digest:
            raise Broken(f"school {self.number} has two events at {epoch}-{seq}: {message} and another")
        if event.kind == "jobs":
            latest = self.latest_of_job.setdefault(epoch, {})
            latest[event.subject[1]] = max(seq, latest.get(event.subject[1], 0))
        return epoch, seq, known

    def acknowledge(self, message):
        epoch, seq, _ = self.saw(message)
        self.acknowledged.append((epoch, seq))

    def check_log(self, epoch, log):
        """Compares with the whole log as it is at the end: dense, everything acknowledged in it, no work of a job done twice."""
        if sorted(log) != list(range(1, len(log) + 1)):
            missing = set(range(1, max(log, default=0) + 1)) - set(log)
            raise Broken(f"school {self.number}: the log lacks {sorted(missing)[:10]}")
        milestones = {life: milestones_of(events) for life, events in self.lives.items()}
        answered = set()
        for life, seq in self.acknowledged:
            event = self.lives[life][seq]
            there = log.get(seq)
            if there is None or there.digest != event.digest:
                # A power loss takes ticks that were acknowledged, never milestones.
                if life == epoch or seq in milestones[life]:
                    raise Broken(f"school {self.number}: {life}-{seq} was acknowledged and is not in the log")
                continue
            if seq in answered and life == epoch:
                raise Broken(f"school {self.number}: {seq} is the answer to two requests")
            answered.add(seq)
        twice, latest = [], {}
        for seq in sorted(log):
            event = log[seq]
            if event.kind == "jobs" and seq not in answered and not event.is_new_estimate_after(latest.get(event.subject)):
                twice.append(seq)
            latest[event.subject] = event
        if twice:
            found = ", ".join(f"{seq} ({log[seq].subject[1]}, {log[seq].state})" for seq in twice[:10])
            raise Broken(f"school {self.number}: {len(twice)} events that nobody was answered with: {found}")


def milestones_of(events):
    """The numbers of a life's events that are never dropped. Of a life that was lost in part some events are unknown: then only those
    that are milestones whatever was in between."""
    found, states, before = set(), {}, None
    for seq in sorted(events):
        event = events[seq]
        if before is not None and seq != before + 1:
            states = {}
        before = seq
        if event.kind == "jobs":
            known = states.get(event.subject)
            if event.status != "in_progress" or (known is not None and known != event.state):
                found.add(seq)
            states[event.subject] = event.state
        elif event.type not in ("sample", "device_info_update"):
            found.add(seq)
    return found


class Stretch:
    """What a reader received of one life, from where it began."""

    def __init__(self, epoch, start):
        self.epoch, self.start, self.end = epoch, start, start
        self.received = bytearray()  # by number

    def has(self, seq):
        return seq < len(self.received) and self.received[seq]

    def receive(self, seq):
        self.received.extend(bytes(max(0, seq + 1 - len(self.received))))
        self.received[seq] = 1

    def check(self, school, scope, every_tick, milestones):
        life = school.lives.get(self.epoch, {})
        heard = [seq for seq in life if scope.hears(life[seq])]
        due = [seq for seq in heard if self.start < seq <= self.end]
        last = {}
        for seq in heard:
            last[life[seq].subject] = max(seq, last.get(life[seq].subject, 0))
        # A tick that a later event supersedes may be left out.
        newest = set(last.values())
        for seq in sorted(due):
            if self.has(seq):
                continue
            why = "a milestone" if seq in milestones else "every tick" if every_tick else "the newest state" if seq in newest else None
            if why:
                raise Broken(f"school {school.number}, {scope}: {self.epoch}-{seq} ({why}) is missing in ({self.start}, {self.end}]")
        alien = [seq for seq in life if self.has(seq) and not scope.hears(life[seq])]
        if alien:
            raise Broken(f"school {school.number}, {scope}: {self.epoch}-{alien[0]} is not in scope")


class Reading:
    """One reader's conversation, over any number of connections."""

    COMEBACKS = 6

    def __init__(self, school, scope, every_tick, name):
        self.school, self.scope, self.every_tick, self.name = school, scope, every_tick, name
        self.stretches, self.now = [], None
        self.cursors = []  # the latest ones, any of which is safe to come back with
        self.floor = 0  # on this connection everything comes after this
        self.states, self.is_fresh = {}, True  # of jobs, on a connection that began without a cursor or with a reset
        self.events, self.resets = 0, 0
        self.lately = deque(maxlen=1_000)  # what is written down if it breaks

    def connected(self, transport, cursor):
        """A connection begins, with a cursor that was received before or without one."""
        self.lately.append(f"--- {transport} with {cursor}")
        self.states, self.floor, self.is_fresh = {}, 0, cursor is None
        if cursor is None:
            self.now = None
            return
        epoch, seq = place(cursor)
        # A client that comes back from an earlier place forgets what came after.
        self.cursors = self.cursors[: len(self.cursors) - self.cursors[::-1].index(cursor)]
        if self.now is None or self.now.epoch != epoch:
            self._begin(epoch, seq)
        # What came after this cursor comes again.
        self.now.start, self.now.end, self.floor = min(self.now.start, seq), seq, seq

    def take(self, message, may_reset):
        kind = message["type"]
        self.lately.append(json.dumps(message)[:160])
        if kind in KINDS:
            self._event(message)
        elif kind == "reset":
            if not may_reset(message["reason"], place(message["cursor"])[0] if message.get("cursor") else None):
                raise Broken(f"{self.name}: a reset without a reason: {message}")
            self.resets += 1
            self.now, self.states, self.floor, self.cursors, self.is_fresh = None, {}, 0, [], True
            return
        elif kind == "ready" and self.is_fresh:
            epoch, seq = place(message["cursor"])
            self._every_state(epoch, seq)
            self.is_fresh = False
            if self.now is None:
                self._begin(epoch, seq)
        if cursor := message.get("cursor"):
            self._moved(kind, cursor)

    def _begin(self, epoch, seq):
        self.now, self.floor = Stretch(epoch, seq), seq
        self.stretches.append(self.now)

    def _event(self, message):
        epoch, seq, event = self.school.saw(message)
        if message.get("snapshot"):
            if event.kind == "jobs":
                self.states[event.subject[1]] = seq
            return
        self.events += 1
        if self.now is None:
            # What happened while the snapshot was read is told before `ready`.
            self._begin(epoch, seq - 1)
        if event.kind == "jobs":
            self.states[event.subject[1]] = seq
        if epoch != self.now.epoch or seq <= self.floor:
            raise Broken(f"{self.name}: {epoch}-{seq} after {self.now.epoch}-{self.floor}")
        self.now.receive(seq)

    def _moved(self, kind, cursor):
        epoch, seq = place(cursor)
        # The first message may tell of another life: a reset follows, unless the reader comes back with its cursor.
        if self.now is not None and (kind not in ("connected", "subscribed") or epoch == self.now.epoch):
            if epoch != self.now.epoch:
                raise Broken(f"{self.name}: {kind} has {cursor} in life {self.now.epoch}")
            self.floor, self.now.end = max(self.floor, seq), max(self.now.end, seq)
        self.cursors = [*self.cursors, cursor][-self.COMEBACKS :]

    def _every_state(self, epoch, head):
        """By `ready` each job has been told as it is, by the snapshot or by what happened since."""
        if not self.scope.is_all_jobs:
            return
        for job, seq in self.school.latest_of_job.get(epoch, {}).items():
            if seq <= head and self.states.get(job, 0) < seq:
                raise Broken(f"{self.name}: by `ready` at {head} {job} was not told as of {seq}")

    def check(self, milestones):
        for stretch in self.stretches:
            self.lately.append(f"=== stretch of {stretch.epoch}: ({stretch.start}, {stretch.end}]")
            stretch.check(self.school, self.scope, self.every_tick, milestones.get(stretch.epoch, set()))
