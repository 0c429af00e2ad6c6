"""Chaos: a real server is killed, frozen and cut off from its disk, and its clock is set, while workers publish and readers
switch between all transports with cursors that they received at any time. Afterwards `ledger.py` checks every guarantee.

    python3 tests/chaos/run.py --binary target/release/tidings --seconds 600 --seed 7
    python3 tests/chaos/run.py --binary target/debug/tidings --seconds 10 --plant drop

Exit code 0: every guarantee held. 1: one was broken; the run prints it and keeps the folder with the server's log and database.
2: the run itself failed.
`--plant` injects one fault on the reader's side, which the check must detect."""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time

import wire
from clients import Reader, Worker, end, scopes
from ledger import Broken, Histories, Reading, School, place
from outcome import of_readers, outcome
from server import SECRET, Server

FAULTS = ("kill", "term", "freeze", "power", "disk", "clock")
PLANTS = ("drop", "repeat", "swap", "alter", "invent", "skip", "run-ahead", "reset", "other-event")


class Plant:
    """A fault injected on the reader's side, which the check must detect."""

    def __init__(self, what, after):
        self.what, self.after, self.is_done, self.kept = what, after, what is None, None

    def spoil(self, reader, message):
        if self.is_done or time.monotonic() < self.after or not reader.every_tick:
            return [message]
        if self.what == "skip":
            return [self._skip(reader, message)]
        if self.what in ("reset", "other-event"):
            return self._come_back(reader.reading, message)
        if message["type"] != "job_progress" or message.get("snapshot"):
            return [message]
        if self.what == "swap" and self.kept is None:
            self.kept = (reader, message)
            return []
        if self.what == "swap" and self.kept[0] is not reader:
            return [message]
        self.is_done = True
        match self.what:
            case "drop":
                return []
            case "repeat":
                return [message, message]
            case "swap":
                return [message, self.kept[1]]
            case "alter":
                return [message | {"progress": (message["progress"] or 0) + 1e-9}]
            case "run-ahead":
                return [{"type": "heartbeat", "cursor": message["cursor"]}, message]
            case "invent":
                # Acknowledge an event that never happened.
                far = message["seq"] + 1_000_000
                reader.school.acknowledge(message | {"seq": far, "cursor": f"{reader.school.epoch}-{far}-00000000"}, 0)
                return [message]

    def _skip(self, reader, message):
        """Replaces the cursor by one beyond what was received, as the only cursor to resume from."""
        if message["type"] not in ("heartbeat", "polled") or not reader.scope.tail.startswith("schools/"):
            return message
        newest = max(reader.school.places, default=0)
        if newest <= place(message["cursor"])[0]:
            return message
        self.is_done = True
        tag = next(iter(reader.school.places[newest]))
        return message | {"cursor": f"{reader.school.epoch}-{newest}-{tag}"}

    def _come_back(self, reading, message):
        """Reports a reset for a valid cursor, or pretends that a cursor of a lost history was honoured."""
        if not reading.claim or message["type"] not in ("ready", "polled"):
            return [message]
        seq, tag = place(reading.claim)
        if tag is None:
            return [message]
        self.is_done = True
        if self.what == "reset":
            return [{"type": "reset", "reason": "history_changed"}, message]
        reading.claim = f"{reading.school.epoch}-{seq}-{int(tag, 16) ^ 1:08x}"
        return [message]


class Run:
    """One run."""

    def __init__(self, options, folder):
        self.seed, self.seconds = options.seed, options.seconds
        self.has_plant = options.plant is not None
        self.faults = [name for name in options.faults.split(",") if name]
        self.chance = random.Random(options.seed)
        self.server = Server(options.binary, folder, self.faults)
        self.schools = [School(number) for number in range(1, options.schools + 1)]
        self.readers, self.workers, self.tasks = [], [], []
        for school in self.schools:
            self.workers += [Worker(self, school, f"w{school.number}.{number}") for number in range(options.workers)]
            kinds = scopes(school.number)
            self.readers += [Reader(self, school, kinds[number % len(kinds)], number, Reading) for number in range(options.readers)]
        self.is_lull = False
        self.is_over, self.refused, self.closings, self.happened = False, 0, 0, dict.fromkeys(self.faults, 0)
        self.lost_ticks, self.disturbed_at = 0, 0.0
        self.plant = Plant(options.plant, time.monotonic() + min(5, options.seconds / 3))

    @property
    def life(self):
        return self.server.power_losses

    def oldest_life(self):
        return self.life

    def port(self, _):
        return self.server.port

    def is_disturbed(self, within):
        return time.monotonic() - self.disturbed_at < within + 5

    async def disturb(self):
        while not self.is_over and self.faults:
            await asyncio.sleep(self.chance.uniform(0.2, 4))
            name = self.chance.choice(self.faults)
            self.disturbed_at = time.monotonic()
            await self.server.fault(name)(self.chance)
            self.happened[name] += 1
            self.disturbed_at = time.monotonic()

    async def carry_out(self):
        await self.server.start()
        readers = [asyncio.create_task(reader.roam(lambda: self.is_over)) for reader in self.readers]
        workers = [asyncio.create_task(worker.work()) for worker in self.workers]
        for school in self.schools:
            steady = Worker(self, school, f"steady{school.number}")
            workers.append(asyncio.create_task(steady.keep_steady()))
        disturbance = asyncio.create_task(self.disturb())
        self.tasks = [*readers, *workers, disturbance]
        done, _ = await asyncio.wait(self.tasks, timeout=self.seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        self.is_over = True
        await disturbance
        _, unanswered = await asyncio.wait([*workers, *readers], timeout=4 * wire.PATIENCE_SECS)
        if unanswered:
            raise Broken(f"{len(unanswered)} workers and readers still wait for an answer")
        await asyncio.gather(*workers, *readers)
        await self.check()

    async def check(self):
        heads, logs = {}, {}
        for school in self.schools:
            logs[school.number] = await self.whole_log(school)
            heads[school.number] = len(logs[school.number])
        self.tasks = [asyncio.create_task(reader.roam(lambda reader=reader: reader.has_reached(heads))) for reader in self.readers]
        done, late = await asyncio.wait(self.tasks, timeout=4 * wire.PATIENCE_SECS, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if late:
            behind = [reader.reading.name for reader in self.readers if not reader.has_reached(heads)]
            raise Broken(f"these readers do not reach the head: {behind}")
        for school in self.schools:
            histories = Histories(school, self.server.power_losses + 1)
            self.lost_ticks += histories.check_log(logs[school.number])
            histories.check_cursors()
            for reader in self.readers:
                if reader.school is school:
                    reader.reading.check(histories)

    async def whole_log(self, school):
        """Reads a school's log from its beginning, every tick. Returns the tags of its events, by number."""
        token = wire.token(SECRET, school.number, "viewer")
        _, body = await wire.request(self.server.port, "GET", "/api/jobs?limit=1", token)
        epoch = json.loads(body)["cursor"].partition("-")[0]
        cursor, tags = f"{epoch}-0", {}
        while True:
            poll = await wire.Poll().open(self.server.port, f"/events/schools/{school.number}?tick_ms=0", token, cursor)
            for message in poll.messages:
                if message["type"] == "reset":
                    raise Broken(f"school {school.number}: the log cannot be read from its beginning: {message}")
                if "seq" in message:
                    school.saw(message, self.server.power_losses)
                    seq, tag = place(message["cursor"])
                    tags[seq] = tag
            following = poll.messages[-1]["cursor"]
            if following == cursor:
                return tags
            cursor = following

    def evidence(self):
        return of_readers(self.readers)

    async def close(self):
        await end(self.tasks)
        await self.server.close()

    def figures(self):
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "starts": self.server.starts,
            "faults": self.happened,
            "acknowledged": sum(len(school.acknowledged) for school in self.schools),
            "events_received": sum(reader.reading.events for reader in self.readers),
            "connections": sum(reader.connections for reader in self.readers),
            "resets": sum(reader.reading.resets for reader in self.readers),
            "honoured_after_power_loss": sum(reader.reading.crossed for reader in self.readers),
            "lost_ticks": self.lost_ticks,
            "closings": self.closings,
            "refused": self.refused,
        }


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", default="kill,term,freeze", help=f"a list of {', '.join(FAULTS)}; `disk` mounts a tmpfs")
    parser.add_argument("--schools", type=int, default=2)
    parser.add_argument("--workers", type=int, default=3, help="workers per school")
    parser.add_argument("--readers", type=int, default=8, help="readers per school")
    parser.add_argument("--plant", choices=PLANTS)
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    unknown = set(options.faults.split(",")) - {"", *FAULTS}
    if unknown:
        parser.error(f"--faults: unknown: {', '.join(sorted(unknown))}; expected: {', '.join(FAULTS)}")
    folder = tempfile.mkdtemp(prefix="tidings-chaos-")
    run = Run(options, folder)
    print(f"chaos: seed {options.seed}, in {folder}", flush=True)
    return await outcome(run, folder, run.carry_out)


sys.exit(asyncio.run(main()))
