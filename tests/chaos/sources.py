"""Devices that send heartbeats to alternating nodes, and the receiver of a notifier, with what must hold of both."""

import asyncio
import json
import math
import random
import re
import time
from datetime import datetime

import wire
from ledger import Broken, place
from server import SECRET

LEASE_SECS = 6
# What a node hears is known to the others this much later, at most.
TOLD_SECS = 2
# How long an undelivered event may take after the last fault: a few retries with backoff, and another node that takes over.
DELIVERY_SECS = 90


class HeartbeatSender:
    """A device that sends heartbeats to the nodes in turn, and sometimes falls silent for longer than its lease."""

    def __init__(self, run, school, name):
        self.run, self.school, self.name = run, school, name
        self.chance = random.Random(f"{run.seed}-{name}")
        self.token = wire.token(SECRET, school.number)
        self.heartbeats = []  # (sent, answered, number of the node), on the wall clock
        self.next = self.chance.randrange(len(run.nodes))

    async def work(self):
        while not await self._send("PUT", f"/api/devices/{self.name}", {"name": "door", "lease_secs": LEASE_SECS}):
            await asyncio.sleep(0.1)
        while not self.run.is_over:
            silent_at = time.monotonic() + self.chance.uniform(5, 60)
            while time.monotonic() < silent_at and not self.run.is_over:
                sent = time.time()
                node = self.run.nodes[self.next % len(self.run.nodes)]
                self.next += 1
                if await self._send("POST", f"/api/devices/{self.name}/heartbeat", None, node):
                    self.heartbeats.append((sent, time.time(), node.number))
                await asyncio.sleep(self.chance.uniform(0, 1))
            if self.chance.random() < 0.5 and not self.run.is_over:
                await asyncio.sleep(self.chance.uniform(0, 2 * LEASE_SECS))

    async def _send(self, method, path, body, node=None):
        """Returns whether the request succeeded. It is not repeated: the next one follows anyway."""
        port = node.server.port if node else self.run.port(self.chance)
        try:
            data = b"" if body is None else json.dumps(body).encode()
            status, answer = await asyncio.wait_for(wire.request(port, method, path, self.token, data), 5)
        except (wire.Gone, asyncio.TimeoutError):
            return False
        if status == 404 and self.run.life:
            # A promotion lost the device.
            await self._send("PUT", f"/api/devices/{self.name}", {"name": "door", "lease_secs": LEASE_SECS})
            return False
        if status >= 300 and status not in (429, 503):
            raise Broken(f"{method} {path}: {status} {answer[:300]}")
        return status < 300


def check_devices(run, truth):
    """No device may lose its lease while it is heard by a node that nothing happens to, and each must have lost it at the end. Returns how
    many ends of leases some node was there to judge."""
    judged = 0
    senders = {sender.name: sender for sender in run.senders if sender.school is truth.school}
    status = {}
    for message in truth.messages:
        sender = senders.get(message.get("device_id"))
        if sender is None or message["type"] != "device_status_update":
            continue
        status[sender.name] = message["status"]
        if message["status"] != "offline":
            continue
        at = datetime.fromisoformat(message["timestamp"]).timestamp()
        began = at - LEASE_SECS
        # When a beat counts is when it was sent: the answer may have waited.
        heard = {node for sent, answered, node in sender.heartbeats if sent > began and answered < at - TOLD_SECS}
        quiet = [node for node in run.nodes if all(to < began - TOLD_SECS or since > at for since, to in node.disturbed)]
        judged += bool(quiet)
        for node in quiet:
            if node.number in heard:
                raise Broken(f"{sender.name} was offline at {message['timestamp']}, and node {node.number} had heard it less than {LEASE_SECS} s before")
    for name in senders:
        if status.get(name) == "online":
            raise Broken(f"{name} is silent, and was never told to be offline")
    return judged


class Receiver:
    """Takes webhooks. Now and then it is out of order."""

    def __init__(self, seed):
        self.chance, self.delivered, self.ids = random.Random(f"{seed}-receiver"), [], {}

    def notifier(self):
        return {
            "name": "chaos",
            "attempts": 100,
            "rules": [{"kinds": ["jobs"], "statuses": ["completed", "failed"]}],
            "webhook": {"url": f"http://127.0.0.1:{self.port}/hook", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},
        }

    async def listen(self):
        self.server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _take(self, reader, writer):
        try:
            while await reader.readline():
                headers = {}
                while (line := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    headers[name.decode().lower()] = value.strip().decode()
                body = await reader.readexactly(int(headers["content-length"]))
                event = json.loads(body)["data"]
                if self.chance.random() < 0.03:
                    # Not taken, or taken and the answer lost.
                    if self.chance.random() < 0.5:
                        self.delivered.append((headers["webhook-id"], event))
                        return
                    writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
                    continue
                self.delivered.append((headers["webhook-id"], event))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def missing(self, truths, given_up):
        """Returns the events of the present logs that were neither delivered nor reported as too old. `given_up`: (school, first, last,
        subject or "")."""
        delivered = {(event["school_id"], *place(event["cursor"])) for _, event in self.delivered}
        wanted = {(school, seq, tag) for school, truth in truths.items() for seq, (tag, event) in truth.logs[-1].items() if is_due(event)}
        missing = wanted - delivered
        for school, first, last, subject in given_up:
            if missing:
                log = truths[school].logs[-1]
                missing = {one for one in missing if not (one[0] == school and first <= one[1] <= last and subject in ("", log[one[1]][1].subject[1]))}
        return sorted(missing)


def is_due(event):
    return event.kind == "jobs" and event.status in ("completed", "failed")


# What the notifier has given up, and when.
DEAD_LETTERS = "SELECT json_build_array(school_id, seq, subject_id, cause, at) FROM dead_letters WHERE name = 'chaos'"
# A time of a node may be this much before the database's: a node rounds down.
CLOCKS_SECS = 0.1
# The causes of dead letters here. The receiver is never out of order for so long that all attempts fail.
TOO_OLD = re.compile(r"events (\d+) to (\d+) (?:of the subject )?are past retention|(past retention) before delivery, .* up to (\d+);")


def read_dead_letters(rows, logs):
    """Returns what a notifier has given up, as (school, first, last, subject or ""). Retention must have deleted it before, as the logs
    say, which were read afterwards."""
    given_up = []
    for school, seq, subject, cause, at in rows:
        found = TOO_OLD.search(cause)
        if not found:
            raise Broken(f"school {school}: {seq} of {subject!r} was given up: {cause}")
        first, last = int(found[1] or seq), int(found[2] or found[4])
        if logs[school].swept.get(last, math.inf) > at / 1000 + CLOCKS_SECS:
            raise Broken(f"school {school}: {last} was given up as past retention, and was not deleted before: {cause}")
        given_up.append((school, first, last, subject))
    return given_up


async def check_notifier(receiver, truths, dead_letters=lambda: ([], {})):
    """Everything due is delivered at least once or reported as past retention, only what was committed, each under one id, and each
    subject's in order. `dead_letters` returns the rows of `DEAD_LETTERS`, and the logs as they are after that. Returns how many reports there
    were."""
    deadline = time.monotonic() + DELIVERY_SECS
    while True:
        given_up = read_dead_letters(*await asyncio.to_thread(dead_letters))
        missing = receiver.missing(truths, given_up)
        if not missing or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    if missing:
        raise Broken(f"{len(missing)} events were not delivered within {DELIVERY_SECS} s, such as {missing[:5]}")
    ids, latest = {}, {}
    for id, message in receiver.delivered:
        spot = place(message["cursor"])
        truth = truths[message["school_id"]]
        _, event = truth.school.saw(message)
        lives = truth.lives_of(spot)
        if not lives or not is_due(event):
            raise Broken(f"delivered, and not due: {message}")
        if ids.setdefault(id, (message["school_id"], spot)) != (message["school_id"], spot):
            raise Broken(f"the id {id} stands for two events: {ids[id]} and {spot}")
        subject = (message["school_id"], event.subject)
        seen = latest.setdefault(subject, {})
        if spot not in seen:
            # Later ones of the same history must not have come before it.
            early = [other for other, their in seen.items() if other > spot and lives & their]
            if early:
                raise Broken(f"{spot} of {subject} was delivered after {early[0]}")
            seen[spot] = lives
    if len(ids) != len({spot for seen in ids.values() for spot in [seen]}):
        raise Broken("an event was delivered under two ids")
    return len(given_up)
