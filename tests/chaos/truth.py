"""Checks what clients of several nodes saw against the true logs, which are read from the databases themselves after the run.

A *life* of the database ends when a standby that lacks commits takes over, or with a crash that loses ticks. `logs[k]` is the whole log of
a school at the end of life k, with the events that retention has deleted, as it was read at that moment. The next life's log has a beginning in common with it, and then
goes on differently. Each reader must have walked along these logs: forward, without a gap, and from one log to another only where they are
the same, or after a `reset`."""

import json
import time
import zlib
from collections import deque
from datetime import datetime, timezone
from itertools import pairwise

from ledger import KINDS, Broken, Event, awaited, milestones_of, place
from silence import found_silent, timestamp_of

BEGINNING = (0, None)  # the place before the first event
# Run in the nodes' database: what retention deletes from the logs is kept, with the time of the deletion.
KEEP_SWEPT = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.swept (LIKE events, swept_at BIGINT NOT NULL);
CREATE FUNCTION chaos.keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos.swept SELECT OLD.*, floor(extract(epoch FROM clock_timestamp()) * 1000);
    RETURN OLD;
END $$;
CREATE TRIGGER keep_swept BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION chaos.keep();
"""
COLUMNS = "school_id, seq, kind, subject_id, name, status, at, fields"
# The whole logs, in one moment.
WHOLE_LOGS = f"SELECT json_build_array({COLUMNS}, NULL) FROM events UNION ALL SELECT json_build_array({COLUMNS}, swept_at) FROM chaos.swept"


def tag_of(seq, kind, subject, name, status, at, fields):
    """Computes the tag of an event."""
    crc = zlib.crc32(seq.to_bytes(8, "little") + at.to_bytes(8, "little", signed=True))
    for text in (kind, subject, name, status, fields):
        crc = zlib.crc32(len(text.encode()).to_bytes(8, "little") + text.encode(), crc)
    return f"{crc:08x}"


class Log:
    """The log of one school at the end of a life."""

    def __init__(self, messages=(), swept=None):
        self.messages, self.swept = list(messages), dict(swept or {})  # swept: the number of a deleted event -> the time

    @staticmethod
    def of_rows(rows):
        """Returns the logs by school, from the rows of `WHOLE_LOGS`."""
        logs = {}
        for school, seq, kind, subject, name, status, at, fields, swept_at in sorted(rows, key=lambda row: row[:2]):
            log = logs.setdefault(school, Log())
            timestamp = datetime.fromtimestamp(at // 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S") + f".{at % 1000:03}Z"
            cursor = f"log-{seq}-{tag_of(seq, kind, subject, name, status, at, fields)}"
            log.messages.append({"type": name, "cursor": cursor, "school_id": school, "seq": seq, "timestamp": timestamp, **json.loads(fields)})
            if swept_at is not None:
                log.swept[seq] = swept_at / 1000
        return logs


class School:
    """What clients heard of a school, and what it answered."""

    def __init__(self, number):
        self.number, self.epoch = number, None
        self.events = {}  # (seq, tag) -> Event
        self.acknowledged = []  # (life, seq, tag)

    def saw(self, message, _life=None):
        """Records an event that a client received. All must receive the same."""
        spot = place(message["cursor"])
        # A state whose event retention has deleted may be without a tag.
        has_tag = spot[1] is not None or message.get("snapshot")
        if spot[0] != message["seq"] or message["school_id"] != self.number or not has_tag:
            raise Broken(f"school {self.number} received {message}")
        event = Event(message)
        if message.get("snapshot"):
            known = self.events.get(spot)
            # A state may omit an estimate that has passed, so it need not equal its event exactly.
            if known and event.kind == "jobs" and known.report != event.report:
                raise Broken(f"school {self.number}: the snapshot differs from the event at {spot}: {message}")
            return spot, event
        known = self.events.setdefault(spot, event)
        if known.digest != event.digest:
            raise Broken(f"school {self.number} has two events at {spot}: {message} and another")
        return spot, known

    def acknowledge(self, message, life):
        spot, _ = self.saw(message)
        self.acknowledged.append((life, *spot))


class Truth:
    """A school's logs, of all lives."""

    def __init__(self, school, logs):
        """`logs`: a `Log` for each life."""
        self.school, self.logs, self.lives, self.milestones, self.last = school, [], {}, [], []
        logs = list(logs)
        self.swept = [whole.swept for whole in logs]
        for life, whole in enumerate(logs):
            log = {}
            for message in whole.messages:
                spot, event = school.saw(message)
                log[spot[0]] = (spot[1], event)
                self.lives.setdefault(spot, set()).add(life)
            if list(log) != list(range(1, len(log) + 1)):
                raise Broken(f"school {school.number}: the log of life {life} is not dense")
            self.logs.append(log)
            self.last.append({event.subject: seq for seq, (_, event) in log.items()})
            self.milestones.append(milestones_of({seq: event for seq, (_, event) in log.items()}, is_whole=True))
        self.everywhere = set(range(len(logs)))
        self._check_that_cuts_are_clean()
        self.messages = logs[-1].messages

    def _check_that_cuts_are_clean(self):
        """Two logs must be the same up to an event that both have."""
        for life, (one, next) in enumerate(pairwise(self.logs)):
            common = [seq for seq, (tag, _) in one.items() if seq in next and next[seq][0] == tag]
            if common and common != list(range(1, common[-1] + 1)):
                raise Broken(f"school {self.school.number}: the logs of lives {life} and {life + 1} differ before {common[-1]}, which both have")

    def lives_of(self, spot):
        """Returns the lives whose logs have this event. Every log has the beginning."""
        return self.everywhere if spot[1] is None else self.lives.get(spot, set())

    def head(self, life=-1):
        log = self.logs[life]
        return (len(log), log[len(log)][0]) if log else (0, None)

    def check_retention(self, retention_secs):
        """Only events that are older than the retention may be deleted, and only from the beginning of a log. Returns how many were."""
        for life, swept in enumerate(self.swept):
            if sorted(swept) != list(range(1, len(swept) + 1)):
                raise Broken(f"school {self.school.number}: retention left holes in the log of life {life}")
            for seq, at in swept.items():
                age = at - timestamp_of(self.logs[life][seq][1])
                if age < retention_secs:
                    raise Broken(f"school {self.school.number}: {seq} was deleted in life {life} at the age of {age:.3f} s, before {retention_secs} s")
        return len(self.swept[-1])

    def check_answers(self, crashed):
        """Everything acknowledged must have been in the log of its life, and no work of a job may be there twice. The lives in `crashed`
        may have lost ticks at their end, and no milestones. Returns how many acknowledged events were lost."""
        number, present, lost, answered = self.school.number, len(self.logs) - 1, 0, set()
        for life, seq, tag in self.school.acknowledged:
            lives = self.lives_of((seq, tag))
            if life not in lives:
                raise Broken(f"school {number}: {seq}-{tag} was acknowledged in life {life} and is in the logs of lives {sorted(lives)}")
            end = max(lives)
            if end in crashed and seq in self.milestones[end]:
                raise Broken(f"school {number}: the crash at the end of life {end} lost {seq}-{tag}, an acknowledged milestone")
            lost += end != present
            if (seq, tag) in answered:
                raise Broken(f"school {number}: {seq}-{tag} is the answer to two requests")
            answered.add((seq, tag))
        twice, latest = [], {}
        for seq, (tag, event) in self.logs[present].items():
            earlier = latest.get(event.subject)
            is_answer = event.kind != "jobs" or (seq, tag) in answered
            if not is_answer and not event.is_new_estimate_after(earlier) and not found_silent(event, earlier):
                twice.append(seq)
            latest[event.subject] = event
        if twice:
            raise Broken(f"school {number}: {len(twice)} events that were the answer to no request: {twice[:10]}")
        return lost


class Reading:
    """One reader's messages, over any number of connections and nodes. They are judged after the run."""

    COMEBACKS = 6

    def __init__(self, school, scope, every_tick, name):
        self.school, self.scope, self.every_tick, self.name = school, scope, every_tick, name
        self.records = []
        self.cursors = []  # the latest ones; resuming from any of them is safe
        self.spot, self.is_ready = None, False
        self.events, self.resets = 0, 0
        self.lately = deque(maxlen=1_000)  # written to a file if a guarantee is broken
        self.life, self.now = lambda: 0, time.time

    def connected(self, transport, cursor, life):
        """Starts a connection, with a cursor that was received before or without one."""
        self.lately.append(f"--- {transport} with {cursor} in life {life}")
        self.records.append(("connected", place(cursor) if cursor else None, awaited(cursor) if cursor else None, life))
        if cursor is None:
            self.spot, self.is_ready = None, False
            return
        # A client that resumes from an earlier place forgets what came after.
        self.cursors = self.cursors[: len(self.cursors) - self.cursors[::-1].index(cursor)]
        self.spot = place(cursor)

    def take(self, message):
        kind = message["type"]
        self.lately.append(json.dumps(message)[:160])
        if kind == "reset":
            self.records.append(("reset", message["reason"], self.life(), self.now()))
            self.resets += 1
            self.spot, self.is_ready, self.cursors = None, False, []
            return
        cursor = message.get("cursor")
        if kind in KINDS:
            spot, event = self.school.saw(message)
            if message.get("snapshot"):
                self.records.append(("state", spot, event))
            else:
                self.events += 1
                self.records.append(("event", spot, event))
                self.spot = spot
        # The first message repeats the reader's own cursor.
        elif cursor and kind not in ("connected", "subscribed"):
            self.is_ready = self.is_ready or kind in ("ready", "polled")
            self.spot = place(cursor)
            self.records.append(("moved", self.spot, kind))
        if cursor:
            self.cursors = [*self.cursors, cursor][-self.COMEBACKS :]


class Walk:
    """Follows what a reader received along the logs."""

    def __init__(self, truth, reading):
        self.truth, self.reading, self.scope = truth, reading, reading.scope
        self.spot, self.claim, self.life, self.states = None, None, 0, {}
        self.awaits = None  # until `ready`: the event of which the reader's cursor says that the reader awaits it
        self.omitted = {}  # subject -> the ticks that a later event must supersede, as places
        self.catches_up_from = None  # where this connection began, until it is `ready`
        self.mid_stream_resets, self.expired = 0, 0

    def check(self):
        for number, (kind, *what) in enumerate(self.reading.records):
            self.number = number
            getattr(self, f"_{kind}")(*what)
        self._check_omitted()
        return self

    def _broken(self, what):
        return Broken(f"{self.reading.name}, record {self.number}: {what}")

    def _connected(self, spot, awaits, life):
        self.life, self.claim, self.catches_up_from = life, spot, spot or BEGINNING
        self.awaits = awaits
        if spot is None:
            self._starts_afresh()
            return
        if self.spot is None or spot[0] < self.spot[0]:
            self.omitted = {subject: kept for subject, ticks in self.omitted.items() if (kept := [tick for tick in ticks if tick[0] <= spot[0]])}
        self.spot = spot

    def _starts_afresh(self):
        self.spot, self.states, self.omitted, self.catches_up_from = None, {}, {}, BEGINNING

    def _reset(self, reason, life, at):
        place = self.claim or self.spot
        window = set(range(self.life, life + 1))
        if place is None and reason == "history_changed" and (self.states or len(window) > 1):
            # Before `ready`, some of what a snapshot had sent, or relied on, was lost; or a connection without channels may have missed
            # an acknowledgement, which is sent to every connection.
            self._starts_afresh()
            return
        if reason not in ("history_changed", "unknown_epoch", "expired") or place is None:
            raise self._broken(f"a reset without a reason: {reason}")
        if reason == "expired":
            # What follows must have been deleted by then.
            if not any(self.truth.swept[life].get(place[0] + 1, at + 1) <= at for life in window):
                raise self._broken(f"{place} is reported as expired in lives {sorted(window)}, and what follows was kept until then")
            self.expired += 1
            self.claim = None
            self._starts_afresh()
            return
        # On a stream that was open when the history changed, the node may have been further than what it has sent.
        is_open = self.claim is None and len(window) > 1
        # A standby may have assigned numbers again, so a cursor without a tag is not accepted. A snapshot has such cursors for events that
        # retention has deleted.
        is_untagged = reason == "unknown_epoch" and place[1] is None
        lives = self.truth.lives_of(place)
        if self.awaits:
            lives = lives & self.truth.lives_of(self.awaits)
        if not (is_open or is_untagged) and window <= lives:
            raise self._broken(f"reset from {place} in lives {sorted(window)}, whose logs have its event")
        self.mid_stream_resets += self.claim is None
        self.claim = self.awaits = None
        self._starts_afresh()

    def _state(self, spot, event):
        self.claim = None
        self.states[event.subject] = spot

    def _event(self, spot, event):
        if self.spot is None:
            # Events that occur while the snapshot is read are sent before `ready`.
            lives = self.truth.lives_of(spot)
            if not lives:
                raise self._broken(f"{spot} was never in a log")
            before = spot[0] - 1
            tag = self.truth.logs[min(lives)][before][0] if before else None
            self.spot = (before, tag)
        if spot[0] <= self.spot[0]:
            raise self._broken(f"{spot} after {self.spot}")
        if not self.scope.hears(event):
            raise self._broken(f"{spot} is not in scope")
        self._goes_to(spot, spot[0] - 1)
        self.omitted.pop(event.subject, None)
        self.states[event.subject] = spot

    def _moved(self, spot, kind):
        """`ready`, `heartbeat`, `polled` and others that carry a cursor."""
        if kind in ("ready", "polled"):
            self.catches_up_from = self.awaits = None
        if self.spot is None:
            if kind not in ("ready", "polled"):
                # A heartbeat while the snapshot is read.
                return
            self._check_states(spot)
            self.spot, self.claim = spot, None
            return
        if kind == "heartbeat" and spot == self.catches_up_from:
            # On `/ws`, a channel that is added resumes from its cursor until all of it has been sent.
            return
        if spot[0] < self.spot[0]:
            raise self._broken(f"the cursor {spot} after {self.spot}")
        self._goes_to(spot, spot[0])

    def _goes_to(self, spot, through):
        """Checks that everything up to `through` that is in scope was sent, or is a tick that may be left out."""
        lives = self.truth.lives_of(spot) & self.truth.lives_of(self.spot)
        if not lives:
            if not self.truth.lives_of(spot):
                raise self._broken(f"{spot} was never in a log")
            raise self._broken(f"{spot} follows {self.spot}, which is in no log with it")
        life = min(lives)
        log, milestones = self.truth.logs[life], self.truth.milestones[life]
        for seq in range(self.spot[0] + 1, through + 1):
            tag, event = log[seq]
            if not self.scope.hears(event):
                continue
            if seq in milestones or self.reading.every_tick:
                what = "a milestone" if seq in milestones else "every tick"
                raise self._broken(f"{seq} ({what}) is missing between {self.spot} and {spot} of life {life}")
            self.omitted.setdefault(event.subject, []).append((seq, tag))
        self.spot, self.claim = spot, None

    def _check_states(self, spot):
        """Checks that before `ready` each job's current state was sent, by the snapshot or by later events."""
        if not self.scope.is_all_jobs:
            return
        lives = self.truth.lives_of(spot)
        if not lives:
            raise self._broken(f"{spot} was never in a log")
        latest = {}
        for seq, (tag, event) in self.truth.logs[min(lives)].items():
            if seq > spot[0]:
                break
            if event.kind == "jobs":
                latest[event.subject] = (seq, tag)
        for subject, newest in latest.items():
            if self.states.get(subject, (0, None))[0] < newest[0]:
                raise self._broken(f"`ready` at {spot} came before the state of {subject} at {newest}")

    def _check_omitted(self):
        """A tick may be omitted if a later event supersedes it, even if that event was lost afterwards."""
        for subject, ticks in self.omitted.items():
            for seq, tag in ticks:
                lives = self.truth.lives_of((seq, tag))
                later = [life for life in lives if self.truth.last[life][subject] > seq]
                if not later or (len(self.truth.logs) - 1 in later):
                    raise self._broken(f"{seq} of {subject} was left out, and no later event of it was sent")
