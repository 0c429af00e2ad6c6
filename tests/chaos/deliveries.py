"""Checks what the client libraries delivered and reported, from the transcript of a run of `clients_run.py`. Knows the published contract, and
shares no code with the server or the clients.

    python3 tests/chaos/deliveries.py transcript.json
    python3 tests/chaos/deliveries.py transcript.json --plant drop
    python3 tests/chaos/deliveries.py transcript.json --every-plant

A *stretch* is what a reader delivered from its start, or from a `reset`, to the next `reset` or its end. In each stretch:

1. `seq` increases, so nothing arrives twice or out of order; each event equals that of the log, and is in the reader's scope.
2. At `ready`, the newest state of each subject has been delivered.
3. After `ready`, no milestone is missing up to the last event that was delivered. A reader of every tick misses no event.
4. At the end of the last stretch, the newest state of each subject has been delivered, and is what the client and the server say that it is.

A `reset` is allowed only when the database got a new epoch, and then only once for each reader that was connected before.

Reports: each event of an answer is in the log. Each job whose end was confirmed has ended once, as reported. No report was carried out twice or
after a later one. In the end no report waits.

Exit code 0: every guarantee held. 1: one was broken. 2: the check itself failed, or there was no opportunity to inject the fault.
With `--every-plant`, 0: each fault was detected, 1: one was not."""

import argparse
import json
import random
import re
import sys
import traceback
from pathlib import Path

from ledger import KINDS, Broken, Event, milestones_of, place

TERMINAL = ("completed", "failed", "cancelled")
# What a snapshot may tell otherwise than its event: an estimate that has passed is omitted, and a heartbeat writes no event.
VOLATILE = ("cursor", "snapshot", "eta_at", "eta_low_at", "eta_high_at", "eta_source", "last_seen")
# What the clients call the parts of a subject.
PARTS = {"job_progress": "", "device_status_update": "", "device_info_update": "#info", "sample": "#sample", "control_limits": "#limits"}


def canonical(value):
    """Returns the value with whole numbers as integers: JavaScript does not tell 5.0 from 5."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: canonical(item) for name, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return value


def stable(message, without):
    return {name: value for name, value in message.items() if name not in without}


def hears(scope, event):
    return scope.startswith("schools/") or event.kind == scope


def part_of(event):
    """Returns the name of what the event is the state of, or None if it is not the state of anything."""
    part = PARTS.get(event.type)
    return None if part is None else "/".join(event.subject) + part


class Log:
    """The server's log after the run."""

    def __init__(self, messages):
        self.messages = {message["seq"]: canonical(message) for message in messages}
        if sorted(self.messages) != list(range(1, len(messages) + 1)):
            raise Broken("the log is not dense, or has an event twice")
        self.events = {seq: Event(message) for seq, message in self.messages.items()}
        self.tags = {seq: place(message["cursor"])[1] for seq, message in self.messages.items()}
        self.milestones = milestones_of(self.events, is_whole=True)

    def newest(self, scope, until=sys.maxsize):
        """Returns the number of the newest event of each part of each subject."""
        found = {}
        for seq, event in self.events.items():
            if seq <= until and hears(scope, event) and (part := part_of(event)):
                found[part] = max(seq, found.get(part, 0))
        return found

    def has(self, cursor):
        seq, tag = place(cursor)
        return seq in self.tags and self.tags[seq] == tag

    def of_job(self, job):
        """Returns the messages about a job, without those that change only the estimate."""
        found, before = [], None
        for seq, event in sorted(self.events.items()):
            if event.subject == ("jobs", job):
                if not event.is_new_estimate_after(before):
                    found.append(self.messages[seq])
                before = event
        return found


class Stretch:
    """What a reader delivered without a gap."""

    def __init__(self, reader, scope, every_tick, log):
        self.reader, self.scope, self.every_tick, self.log = reader, scope, every_tick, log
        self.received, self.last, self.ready, self.epoch = set(), 0, None, None

    def broken(self, what):
        return Broken(f"{self.reader}: {what}")

    def take(self, message):
        cursor = message["cursor"]
        epoch = cursor.partition("-")[0]
        self.epoch = self.epoch or epoch
        if epoch != self.epoch:
            raise self.broken(f"{cursor} is of another epoch than {self.epoch}, and no reset came before")
        if message["type"] == "ready":
            self._ready(place(cursor)[0])
        else:
            self._event(message)

    def _ready(self, seq):
        if self.ready is not None:
            raise self.broken("`ready` came twice")
        self.ready = seq
        for part, newest in self.log.newest(self.scope, seq).items():
            if newest not in self.received:
                raise self.broken(f"`ready` at {seq} came before the state of {part} at {newest}")

    def _event(self, message):
        seq = message["seq"]
        if seq <= self.last:
            raise self.broken(f"{seq} came after {self.last}")
        if not self.log.has(message["cursor"]) or place(message["cursor"])[0] != seq:
            raise self.broken(f"the log has another event at {seq}: {message}")
        is_snapshot = message.get("snapshot", False)
        if is_snapshot and self.ready is not None:
            raise self.broken(f"a snapshot at {seq} came after `ready`")
        without = VOLATILE if is_snapshot else ("cursor",)
        if stable(canonical(message), without) != stable(self.log.messages[seq], without):
            raise self.broken(f"the event at {seq} differs from the log: {message}")
        if not hears(self.scope, self.log.events[seq]):
            raise self.broken(f"{seq} is not in its scope: {message}")
        self.received.add(seq)
        self.last = seq

    def end(self, is_last):
        if self.ready is None:
            if is_last:
                raise self.broken("`ready` did not come")
            return
        log = self.log
        for seq, event in log.events.items():
            if not self.ready < seq <= self.last or seq in self.received or not hears(self.scope, event):
                continue
            if self.every_tick or seq in log.milestones:
                what = "a milestone" if seq in log.milestones else "every tick"
                raise self.broken(f"{seq} ({what}: {event.type} of {'/'.join(event.subject)}) is missing")
        if is_last:
            for part, newest in self.missing().items():
                raise self.broken(f"the newest state of {part} at {newest} is missing")

    def missing(self):
        """Returns the subjects whose newest state has not been delivered."""
        return {part: seq for part, seq in self.log.newest(self.scope).items() if seq not in self.received}


def stretches(name, reader, log):
    """Returns what was delivered between resets, without the lines that are not messages of the server."""
    found = [Stretch(name, reader["scope"], reader["every_tick"], log)]
    for line in reader["lines"]:
        if line["type"] == "reset":
            found.append(Stretch(name, reader["scope"], reader["every_tick"], log))
        elif line["type"] == "ready" or line["type"] in KINDS:
            found[-1].take(line)
    return found


def is_up_to_date(name, reader, log):
    """Whether a reader that is still running has delivered the newest state of each subject."""
    last = stretches(name, reader, log)[-1]
    return last.ready is not None and not last.missing()


def check_reader(name, reader, log, transcript):
    resets = [line for line in reader["lines"] if line["type"] == "reset"]
    for reset in resets:
        if reset["reason"] != "unknown_epoch":
            raise Broken(f"{name}: a reset without a reason: {reset}")
    if len(resets) > transcript["new_epochs"]:
        raise Broken(f"{name}: {len(resets)} resets, and the database got {transcript['new_epochs']} new epochs")
    found = stretches(name, reader, log)
    for stretch in found[:-1]:
        stretch.end(is_last=False)
    found[-1].end(is_last=True)
    for line in reader["lines"]:
        if line["type"] == "subjects":
            check_subjects(name, reader, log, line["subjects"])
    check_states(name, reader, log, transcript["states"])


def check_subjects(name, reader, log, subjects):
    """Compares with the state that the client library keeps."""
    kept = {key: message["seq"] for key, message in subjects.items() if part_of(Event(canonical(message)))}
    newest = log.newest(reader["scope"])
    if kept != newest:
        different = sorted(key for key in kept.keys() | newest.keys() if kept.get(key) != newest.get(key))
        raise Broken(f"{name}: the client keeps another state of {different[:5]} than the log has")


def check_states(name, reader, log, states):
    """Compares the last event of each subject with what the server answers about it."""
    last = {}
    for line in reader["lines"]:
        if line["type"] == "reset":
            last = {}
        elif line["type"] in PARTS:
            last[part_of(Event(line))] = canonical(line)
    for part, state in states.items():
        kind = part.partition("/")[0]
        if reader["scope"] not in (kind, "schools/1"):
            continue
        if part not in last:
            raise Broken(f"{name}: the server has {part}, which was never delivered")
        for field, value in canonical(state).items():
            if last[part].get(field) != value:
                raise Broken(f"{name}: {field} of {part} is {last[part].get(field)}, and the server says {value}")


def check_publisher(name, lines, log):
    for line in lines:
        if line["type"] == "answered":
            cursor = line["event"]["cursor"]
            if not log.has(cursor):
                raise Broken(f"{name}: {cursor} was acknowledged, and is not in the log: {line['event']}")
    ended = {line["job_id"]: line["status"] for line in lines if line["type"] == "ended"}
    if not ended:
        raise Broken(f"{name}: no job has ended")
    for job, status in ended.items():
        check_job(name, job, status, log.of_job(job))
    outbox = lines[-1]
    if outbox["type"] != "outbox" or outbox["waiting"]:
        raise Broken(f"{name}: reports were not sent: {outbox}")


def check_job(name, job, status, messages):
    ends = [message for message in messages if message["status"] in TERMINAL]
    if [message["status"] for message in ends] != [status] or messages[-1] is not ends[0]:
        raise Broken(f"{name}: {job} was acknowledged as {status}, and the log has {[message['status'] for message in messages]}")
    if any(message["attempt"] != 1 for message in messages if message["status"] != "pending"):
        raise Broken(f"{name}: {job} was started twice")
    steps = [int(found[1]) for message in messages[:-1] if (found := re.fullmatch(r"step (\d+)", message["message"] or ""))]
    if steps != sorted(set(steps)):
        raise Broken(f"{name}: reports of {job} were carried out twice or late: {steps}")


def check(transcript):
    """Raises `Broken` if a guarantee was broken. Returns figures."""
    log = Log(transcript["log"])
    for cursor in transcript["acknowledged"]:
        if not log.has(cursor):
            raise Broken(f"{cursor} was acknowledged, and is not in the log")
    for name, lines in transcript["publishers"].items():
        check_publisher(name, lines, log)
    for name, reader in transcript["readers"].items():
        check_reader(name, reader, log, transcript)
    lines = [line for reader in transcript["readers"].values() for line in reader["lines"]]
    return {
        "events": len(log.events),
        "milestones": len(log.milestones),
        "delivered": sum(line["type"] in KINDS for line in lines),
        "resets": sum(line["type"] == "reset" for line in lines),
        "jobs_ended": sum(line["type"] == "ended" for own in transcript["publishers"].values() for line in own),
    }


class NoOpportunity(Exception):
    """The transcript has no place for the fault."""


class Plants:
    """Faults that are injected into a transcript, which the check must detect."""

    def __init__(self, transcript, chance):
        self.transcript, self.chance = transcript, chance
        self.log = Log(transcript["log"])

    def _one(self, found):
        if not found:
            raise NoOpportunity
        return self.chance.choice(found)

    def _live(self, fits=lambda line: True, every_tick=False):
        """Returns the lines of a reader, and the place of an event in them that was live, and after which others follow."""
        found = []
        for reader in self.transcript["readers"].values():
            lines = reader["lines"]
            ready = max((place for place, line in enumerate(lines) if line["type"] == "ready"), default=len(lines))
            if every_tick and not reader["every_tick"]:
                continue
            found += [(lines, at) for at in range(ready + 1, len(lines) - 3) if lines[at]["type"] in KINDS and lines[at + 1]["type"] in KINDS and fits(lines[at])]
        return self._one(found)

    def drop(self):
        lines, at = self._live(lambda line: line["seq"] in self.log.milestones)
        del lines[at]

    def drop_end(self):
        lines, at = self._live(lambda line: line.get("status") in TERMINAL)
        del lines[at]

    def drop_tick(self):
        lines, at = self._live(lambda line: line["seq"] not in self.log.milestones, every_tick=True)
        del lines[at]

    def repeat(self):
        lines, at = self._live()
        lines.insert(at, lines[at])

    def repeat_later(self):
        lines, at = self._live()
        lines.insert(at + 2, lines[at])

    def swap(self):
        lines, at = self._live()
        lines[at], lines[at + 1] = lines[at + 1], lines[at]

    def alter(self):
        lines, at = self._live(lambda line: "progress" in line)
        lines[at] = lines[at] | {"progress": (lines[at]["progress"] or 0) + 1e-9}

    def reset(self):
        lines, at = self._live()
        lines.insert(at, {"type": "reset", "reason": "too_far_behind"})

    def early_ready(self):
        lines = self._one([reader["lines"] for reader in self.transcript["readers"].values()])
        at = max(at for at, line in enumerate(lines) if line["type"] == "ready")
        since = max((at for at, line in enumerate(lines) if line["type"] == "reset"), default=0)
        before = self._one([one for one in range(since, at) if lines[one].get("snapshot")])
        lines.insert(before, lines.pop(at))

    def subject(self):
        kept = [line["subjects"] for reader in self.transcript["readers"].values() for line in reader["lines"] if line["type"] == "subjects"]
        del self._one(kept)["jobs/the-end"]

    def state(self):
        state = self._one([state for part, state in self.transcript["states"].items() if part.startswith("jobs/")])
        state["status"] = "pending"

    def lose(self):
        answers = [line for lines in self.transcript["publishers"].values() for line in lines if line["type"] == "answered"]
        answer = self._one(answers)
        answer["event"] = answer["event"] | {"cursor": re.sub("[^-]+$", "00000000", answer["event"]["cursor"])}

    def lose_end(self):
        ended = [line for lines in self.transcript["publishers"].values() for line in lines if line["type"] == "ended"]
        self._one(ended)["status"] = "cancelled"

    def outbox(self):
        self._one(list(self.transcript["publishers"].values()))[-1]["waiting"] = 1

    def carry_out_twice(self):
        """Turns a report into the one before it, as if that had been carried out again."""
        messages = self.transcript["log"]
        last, found = {}, []
        for message in messages:
            if re.fullmatch(r"step \d+", message.get("message") or "") and message["status"] == "in_progress":
                before = last.get(message["job_id"])
                # An event that changes only the estimate repeats the message of the report.
                if before and before["message"] != message["message"]:
                    found.append((message, before))
                last[message["job_id"]] = message
        message, before = self._one(found)
        message["message"] = before["message"]


PLANTS = sorted(name.replace("_", "-") for name in vars(Plants) if not name.startswith("_"))


def spoil(transcript, plant, seed):
    """Injects a fault."""
    getattr(Plants(transcript, random.Random(f"{seed}-{plant}")), plant.replace("-", "_"))()


def check_plant(text, plant):
    """Injects a fault into a transcript, and prints how it was detected. Returns whether it was."""
    transcript = json.loads(text)
    spoil(transcript, plant, transcript["seed"])
    try:
        check(transcript)
    except Broken as broken:
        print(f"detected: {plant}: {str(broken)[:100]}")
        return True
    print(f"not detected: {plant}")
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transcript", type=Path)
    parser.add_argument("--plant", choices=PLANTS)
    parser.add_argument("--every-plant", action="store_true")
    options = parser.parse_args()
    text = options.transcript.read_text()
    transcript = json.loads(text)
    try:
        if options.every_plant:
            return 0 if all([check_plant(text, plant) for plant in PLANTS]) else 1
        if options.plant:
            spoil(transcript, options.plant, transcript["seed"])
        print(json.dumps(check(transcript)))
    except Broken as broken:
        print(f"BROKEN (seed {transcript['seed']}): {broken}")
        return 1
    except Exception:
        traceback.print_exc()
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
