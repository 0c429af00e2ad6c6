"""Checks the guarantees against what was acknowledged and what readers received. Knows the published contract and shares no code with the server.

A cursor names an event by number and tag. A *life* of the logs is the time between two power losses, which the run counts. A message
belongs to the life in which its connection began. Within a life, a number stands for one event, for all clients. From one life to the next
a log may be cut: the rest stays the same, and what follows is new. So an event that is known in two lives was in the log in all lives
between them, with everything before it. A different event at a known number shows that the log was cut before it."""

import hashlib
import json
import sys
from collections import deque
from itertools import pairwise


class Broken(Exception):
    """A broken guarantee."""


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
    """What the ledger remembers of an event."""

    __slots__ = ("digest", "type", "kind", "subject", "category", "status", "state", "report", "eta_at", "timestamp", "code")

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
        self.timestamp = message.get("timestamp")
        self.code = (message.get("error") or {}).get("code")

    @property
    def is_stalled(self):
        return bool(self.state[2])

    def is_new_estimate_after(self, earlier):
        """Whether the event changes nothing but the estimated end. A report that was carried out twice looks different: the first
        of its events, which was no client's answer, differs from the event before it."""
        return earlier is not None and self.report == earlier.report and self.eta_at != earlier.eta_at


def _digest(message, *without):
    rest = {name: value for name, value in message.items() if name not in without}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=8).digest()


def place(cursor):
    """Returns the number and tag of a cursor. Before the first event there is no tag."""
    _, seq, *tag = cursor.partition(".")[0].split("-")
    return int(seq), tag[0] if tag else None


def awaited(cursor):
    """Returns the number and tag of the event that the reader awaits, because a snapshot may have left out what it changed."""
    seq, _, tag = cursor.partition(".")[2].partition(".")
    return (int(seq), tag) if seq else None


class Heard:
    """What is known of an event: the lives in which it was seen, and its content, unless only cursors name it."""

    __slots__ = ("event", "first", "last")

    def __init__(self, life):
        self.event, self.first, self.last = None, life, life

    def nearest(self, life):
        """Returns the life closest to this one in which the log certainly has the event."""
        return min(max(life, self.first), self.last)


class School:
    """What is known of a school's log."""

    def __init__(self, number):
        self.number = number
        self.epoch = None
        self.places = {}  # seq -> tag -> Heard
        self.acknowledged = []  # (life, seq, tag)
        self.latest_of_job = {}  # life -> id -> seq: events of an earlier life may arrive late
        self.resets, self.honoured = [], []  # (life, cursor, reader)

    def named(self, cursor, life):
        """Records that the log had this event during a life. It must match what is already known at its place."""
        epoch = cursor.partition("-")[0]
        self.epoch = self.epoch or epoch
        if epoch != self.epoch:
            raise Broken(f"school {self.number}: {cursor} is of another epoch than {self.epoch}")
        seq, tag = place(cursor)
        if tag is None:
            return None
        tags = self.places.setdefault(seq, {})
        heard = tags.get(tag)
        if heard is None:
            heard = tags[tag] = Heard(life)
        heard.first, heard.last = min(heard.first, life), max(heard.last, life)
        if len(tags) > 1:
            for other, own in tags.items():
                if other != tag and own.first <= heard.last and heard.first <= own.last:
                    raise Broken(f"school {self.number} has two events at {seq} in life {life}: {tag} and {other}")
        return heard

    def saw(self, message, life):
        """Records an event that a client received."""
        seq, tag = place(message["cursor"])
        if seq != message["seq"] or message["school_id"] != self.number:
            raise Broken(f"school {self.number} received {message}")
        event, heard = Event(message), self.named(message["cursor"], life)
        known = heard.event if heard else None
        if message.get("snapshot"):
            # A state may omit an estimate that has passed, so it need not equal its event exactly.
            if known and event.kind == "jobs" and known.report != event.report:
                raise Broken(f"school {self.number}: the snapshot differs from the event at {seq}-{tag}: {message}")
            return seq, event
        if heard is None:
            raise Broken(f"school {self.number}: an event whose cursor has no tag: {message}")
        if known is None:
            heard.event = known = event
        if known.digest != event.digest:
            raise Broken(f"school {self.number} has two events at {seq}-{tag}: {message} and another")
        if event.kind == "jobs":
            latest = self.latest_of_job.setdefault(life, {})
            latest[event.subject[1]] = max(seq, latest.get(event.subject[1], 0))
        return seq, known

    def acknowledge(self, message, life):
        self.saw(message, life)
        self.acknowledged.append((life, *place(message["cursor"])))


class Histories:
    """A school's log in each life, as far as the received events prove it."""

    def __init__(self, school, lives):
        self.school = school
        self.common = [0] * lives  # the number up to which a life's log continues in the next life
        spans = {}
        for seq, tags in school.places.items():
            for heard in tags.values():
                span = (heard.first, heard.last)
                spans[span] = max(spans.get(span, 0), seq)
        for (first, last), seq in spans.items():
            for life in range(first, last):
                self.common[life] = max(self.common[life], seq)
        self.limits = [[self._limit(life, other) for other in range(lives)] for life in range(lives)]
        self.logs, self.milestones = {}, {}
        self._check_that_cuts_are_clean()

    def _limit(self, life, other):
        """Returns the number up to which the logs of two lives are the same."""
        low, high = sorted((life, other))
        return min(self.common[low:high], default=sys.maxsize)

    def _check_that_cuts_are_clean(self):
        for seq, tags in self.school.places.items():
            for one, next in pairwise(sorted(tags.values(), key=lambda heard: heard.first)):
                if self.limits[one.last][next.first] >= seq:
                    raise Broken(f"school {self.school.number}: {seq} is another event in life {next.first}, and later ones are the same")

    def has(self, life, seq, tag):
        """Whether the log certainly had this event."""
        heard = self.school.places.get(seq, {}).get(tag)
        return heard is not None and seq <= self.limits[life][heard.nearest(life)]

    def log(self, life):
        """Returns the events that the log certainly had, by number."""
        if life not in self.logs:
            limits, log = self.limits[life], {}
            for seq, tags in self.school.places.items():
                for heard in tags.values():
                    if heard.event and seq <= limits[heard.nearest(life)]:
                        log[seq] = heard.event
            self.logs[life], self.milestones[life] = log, milestones_of(log)
        return self.logs[life]

    def check_cursors(self):
        """Checks that a cursor is honoured if and only if the log has its event."""
        for life, cursor, who in self.school.resets:
            awaits = awaited(cursor)
            if self.has(life, *place(cursor)) and (awaits is None or self.has(life, *awaits)):
                raise Broken(f"{who}: {cursor} was answered with a reset in life {life}, and the log has its event")
        for life, cursor, who in self.school.honoured:
            seq, tag = place(cursor)
            for other in self.school.places.get(seq, {}):
                if tag not in (None, other) and self.has(life, seq, other):
                    raise Broken(f"{who}: {cursor} was honoured in life {life}, and the log has {seq}-{other} in its place")

    def check_log(self, tags):
        """Compares with the whole log at the end: it must be dense, contain everything acknowledged, and contain no work of a job twice. Returns
        the number of lost acknowledged ticks."""
        school, present = self.school, len(self.common) - 1
        if sorted(tags) != list(range(1, len(tags) + 1)):
            missing = set(range(1, max(tags, default=0) + 1)) - set(tags)
            raise Broken(f"school {school.number}: the log lacks {sorted(missing)[:10]}")
        answered, lost = set(), 0
        for life, seq, tag in school.acknowledged:
            if tags.get(seq) != tag:
                self.log(life)
                # A power loss may take acknowledged ticks, but never milestones.
                if life == present or seq in self.milestones[life]:
                    raise Broken(f"school {school.number}: {seq}-{tag} was acknowledged in life {life} and is not in the log")
                lost += 1
                continue
            if seq in answered:
                raise Broken(f"school {school.number}: {seq} is the answer to two requests")
            answered.add(seq)
        twice, latest, log = [], {}, self.log(present)
        for seq in sorted(tags):
            event = log[seq]
            if event.kind == "jobs" and seq not in answered and not event.is_new_estimate_after(latest.get(event.subject)):
                twice.append(seq)
            latest[event.subject] = event
        if twice:
            found = ", ".join(f"{seq} ({log[seq].subject[1]}, {log[seq].state})" for seq in twice[:10])
            raise Broken(f"school {school.number}: {len(twice)} events that were the answer to no request: {found}")
        return lost


def milestones_of(events, is_whole=False):
    """Returns the numbers of the events that must never be dropped. If events between them are unknown, only those that are milestones
    in any case. In a whole log, a job's first event is its creation, which is a milestone."""
    found, states, before = set(), {}, None
    for seq in sorted(events):
        event = events[seq]
        if before is not None and seq != before + 1:
            states = {}
        before = seq
        if event.kind == "jobs":
            known = states.get(event.subject)
            if event.status != "in_progress" or (known != event.state if known is not None else is_whole):
                found.add(seq)
            states[event.subject] = event.state
        elif event.type not in ("sample", "device_info_update"):
            found.add(seq)
    return found


class Stretch:
    """What a reader received without a gap from one starting point, over several lives as long as its cursors were honoured."""

    def __init__(self, life, start):
        self.life, self.start, self.end = life, start, start
        self.came_at = 0  # the number at which it entered its current life
        self.received = bytearray()  # by number

    def has(self, seq):
        return seq < len(self.received) and self.received[seq]

    def receive(self, seq):
        self.received.extend(bytes(max(0, seq + 1 - len(self.received))))
        self.received[seq] = 1

    def comes_back(self, seq):
        """Resumes after this number: later events are delivered again."""
        self.start, self.end = min(self.start, seq), seq
        del self.received[seq + 1 :]

    def is_honoured_in(self, life):
        if life != self.life:
            self.life, self.came_at = life, self.end

    def check(self, school, scope, every_tick, log, milestones):
        heard = [seq for seq in log if scope.hears(log[seq])]
        due = [seq for seq in heard if self.start < seq <= self.end]
        last = {}
        for seq in heard:
            last[log[seq].subject] = max(seq, last.get(log[seq].subject, 0))
        # A tick may be omitted if a later event supersedes it, even if a power loss took that event afterwards.
        newest = {seq for seq in last.values() if seq > self.came_at}
        for seq in sorted(due):
            if self.has(seq):
                continue
            why = "a milestone" if seq in milestones else "every tick" if every_tick else "the newest state" if seq in newest else None
            if why:
                raise Broken(f"school {school.number}, {scope}: {seq} ({why}) is missing in ({self.start}, {self.end}] of life {self.life}")
        alien = [seq for seq in log if self.has(seq) and not scope.hears(log[seq])]
        if alien:
            raise Broken(f"school {school.number}, {scope}: {alien[0]} in life {self.life} is not in scope")


class Reading:
    """One reader's messages, over any number of connections."""

    COMEBACKS = 6

    def __init__(self, school, scope, every_tick, name):
        self.school, self.scope, self.every_tick, self.name = school, scope, every_tick, name
        self.stretches, self.now = [], None
        self.cursors = []  # the latest ones; resuming from any of them is safe
        self.life, self.claim = 0, None  # of this connection: its life, and the cursor that is not yet answered
        self.awaiting = None  # the cursor that this connection began with, if it awaits an event, until it is `ready`
        self.floor = 0  # all events on this connection must come after this number
        self.states, self.is_fresh = {}, True  # of jobs, on a connection that began without a cursor or with a reset
        self.events, self.resets, self.crossed = 0, 0, 0
        self.lately = deque(maxlen=1_000)  # written to a file if a guarantee is broken

    def connected(self, transport, cursor, life):
        """Starts a connection, with a cursor that was received before or without one."""
        self.lately.append(f"--- {transport} with {cursor} in life {life}")
        self.states, self.floor, self.is_fresh = {}, 0, cursor is None
        self.life, self.claim, self.awaiting = life, cursor, None
        if cursor is None:
            self.now = None
            return
        self.awaiting = cursor if awaited(cursor) else None
        seq, _ = place(cursor)
        # A client that resumes from an earlier place forgets what came after.
        self.cursors = self.cursors[: len(self.cursors) - self.cursors[::-1].index(cursor)]
        if self.now is None:
            self._begin(seq)
        self.now.comes_back(seq)
        self.floor = seq

    def take(self, message):
        kind = message["type"]
        self.lately.append(json.dumps(message)[:160])
        if kind == "reset":
            self._reset(message["reason"])
            return
        if self.claim and (kind in KINDS or kind in ("ready", "polled")):
            self._honoured()
        if kind in ("ready", "polled"):
            self.awaiting = None
        if kind in KINDS:
            self._event(message)
        elif kind == "ready" and self.is_fresh:
            seq, _ = place(message["cursor"])
            self._every_state(seq)
            self.is_fresh = False
            if self.now is None:
                self._begin(seq)
        if cursor := message.get("cursor"):
            self._moved(kind, cursor)

    def _begin(self, seq):
        self.now, self.floor = Stretch(self.life, seq), seq
        self.stretches.append(self.now)

    def _reset(self, reason):
        cursor = self.claim or self.awaiting
        if cursor is None or reason != "history_changed":
            raise Broken(f"{self.name}: a reset without a reason: {reason}")
        self.school.resets.append((self.life, cursor, self.name))
        self.resets += 1
        self.now, self.claim, self.states, self.floor, self.cursors, self.is_fresh = None, None, {}, 0, [], True
        self.awaiting = None

    def _honoured(self):
        self.school.honoured.append((self.life, self.claim, self.name))
        self.claim = None
        self.crossed += self.life != self.now.life
        self.now.is_honoured_in(self.life)

    def _event(self, message):
        seq, event = self.school.saw(message, self.life)
        if message.get("snapshot"):
            if event.kind == "jobs":
                self.states[event.subject[1]] = seq
            return
        self.events += 1
        if self.now is None:
            # Events that occur while the snapshot is read are sent before `ready`.
            self._begin(seq - 1)
        if event.kind == "jobs":
            self.states[event.subject[1]] = seq
        if seq <= self.floor:
            raise Broken(f"{self.name}: {seq} after {self.floor}")
        self.now.receive(seq)

    def _moved(self, kind, cursor):
        # The first message repeats the reader's own cursor.
        if kind not in ("connected", "subscribed") and self.claim is None:
            self.school.named(cursor, self.life)
            if self.now is not None:
                seq, _ = place(cursor)
                self.floor, self.now.end = max(self.floor, seq), max(self.now.end, seq)
        self.cursors = [*self.cursors, cursor][-self.COMEBACKS :]

    def _every_state(self, head):
        """Checks that before `ready` each job's current state was sent, by the snapshot or by later events."""
        if not self.scope.is_all_jobs:
            return
        for job, seq in self.school.latest_of_job.get(self.life, {}).items():
            if seq <= head and self.states.get(job, 0) < seq:
                raise Broken(f"{self.name}: `ready` at {head} came before the state of {job} at {seq}")

    def check(self, histories):
        for stretch in self.stretches:
            self.lately.append(f"=== stretch of life {stretch.life}: ({stretch.start}, {stretch.end}]")
            log = histories.log(stretch.life)
            stretch.check(self.school, self.scope, self.every_tick, log, histories.milestones[stretch.life])
