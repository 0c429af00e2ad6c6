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
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import wire
from ledger import Broken, Histories, Reading, School, place
from server import SECRET, Server

FAULTS = ("kill", "term", "freeze", "power", "disk", "clock")
PLANTS = ("drop", "repeat", "swap", "alter", "invent", "skip", "run-ahead", "reset", "other-event")
TRANSPORTS = (wire.Sse, wire.WebSocket, wire.Poll, wire.Multiplexed)
# How long a worker waits before it retries.
AGAIN_SECS = 0.05
JOB_TYPES = ("scan", "report", "import")


class Scope:
    """What a reader listens to."""

    def __init__(self, tail, hears, takes_filters=True):
        self.tail, self.hears, self.takes_filters = tail, hears, takes_filters
        self.is_all_jobs = tail == "jobs" or tail.startswith("schools/")

    def __str__(self):
        return self.tail


def scopes(school):
    """Every way to listen to the school that workers publish to here."""

    def kinds(*names):
        return lambda event: event.kind in names

    return [
        Scope(f"schools/{school}", lambda event: True),
        Scope("jobs", kinds("jobs")),
        Scope("devices", kinds("devices")),
        Scope("characteristics", kinds("characteristics")),
        Scope("jobs/steady", lambda event: event.subject == ("jobs", "steady")),
        Scope("characteristics/c1", lambda event: event.subject == ("characteristics", "c1") or event.type == "ack_update"),
        Scope("jobs?status=completed&status=failed", lambda event: event.kind == "jobs" and event.status in ("completed", "failed")),
        Scope("jobs?job_type=scan", lambda event: event.kind == "jobs" and event.category == "scan"),
    ]


class Worker:
    """Publishes, and retries until it gets an answer."""

    def __init__(self, run, school, name):
        self.run, self.school, self.name = run, school, name
        self.chance = random.Random(f"{run.seed}-{name}")
        self.token = wire.token(SECRET, school.number)
        self.keys = 0

    async def send(self, method, path, body, content=None):
        """Returns the server's final answer, after any number of retries, and the life in which it came."""
        self.keys += 1
        headers = {"Idempotency-Key": f"{self.name}-{self.keys}"}
        data = content if content is not None else json.dumps(body).encode()
        while True:
            # Sometimes the worker does not wait for the answer, so that the outcome is unknown.
            abandon = self.chance.uniform(0, 0.02) if self.chance.random() < 0.05 else None
            life = self.run.server.power_losses
            try:
                status, answer = await wire.request(self.run.server.port, method, path, self.token, data, headers, abandon)
            except wire.Gone:
                await asyncio.sleep(AGAIN_SECS)
                continue
            if life != self.run.server.power_losses:
                # It is unknown which life answered.
                continue
            # A line of a batch may be rejected while others are carried out; all are sent again with the same key.
            if status in (429, 503) or (content is not None and b'"status":503' in answer):
                self.run.refused += 1
                await asyncio.sleep(AGAIN_SECS)
            elif status >= 300:
                raise Broken(f"{method} {path} {data[:200]}: {status} {answer[:500]}")
            else:
                return answer, life

    async def publish(self, method, path, body):
        answer, life = await self.send(method, path, body)
        event = json.loads(answer)
        if not event.get("snapshot"):
            self.school.acknowledge(event, life)
        return event

    async def batch(self, commands):
        content = "\n".join(json.dumps(command) for command in commands).encode()
        answer, life = await self.send("POST", "/api/batch", None, content)
        lines = [json.loads(line) for line in answer.splitlines()]
        if len(lines) != len(commands):
            raise Broken(f"{len(commands)} commands, {len(lines)} results")
        for line in lines:
            if line["status"] != 200:
                raise Broken(f"batch: {line}")
            if not line["event"].get("snapshot"):
                self.school.acknowledge(line["event"], life)

    async def work(self):
        number = 0
        while not self.run.is_over:
            number += 1
            await self.chance.choice([self.a_job, self.a_job, self.a_job_in_batches, self.others])(f"{self.name}-{number}")

    async def a_job(self, job):
        path, chance = f"/api/jobs/{job}", self.chance
        attempt = (await self.publish("POST", "/api/jobs", {"job_id": job, "job_type": chance.choice(JOB_TYPES)}))["attempt"]
        if chance.random() < 0.3:
            await self.publish("POST", f"{path}/queue", {})
        while True:
            attempt = (await self.publish("POST", f"{path}/start", {}))["attempt"]
            percent = 0
            while percent < 90 and not self.run.is_over:
                percent = min(90, percent + chance.uniform(0, 15))
                report = {"progress": percent, "attempt": attempt}
                if chance.random() < 0.3:
                    report |= {"message": f"at {percent:.0f}", "metadata": {"page": int(percent)}}
                await self.publish("POST", f"{path}/progress", report)
            if chance.random() < 0.2:
                await self.publish("POST", f"{path}/fail", {"attempt": attempt, "error": {"code": "jam", "message": "paper"}})
                if chance.random() < 0.5 and not self.run.is_over:
                    await self.publish("POST", f"{path}/retry", {})
                    continue
            else:
                await self.publish("POST", f"{path}/complete", {"attempt": attempt, "result": {"pages": 3}})
            return

    async def a_job_in_batches(self, job):
        commands = [{"op": "jobs.create", "job_id": job, "job_type": "scan", "status": "in_progress"}]
        for number in range(self.chance.randint(1, 40)):
            commands.append({"op": "jobs.progress", "job_id": job, "progress": number})
        await self.batch(commands)
        await self.batch([{"op": "jobs.complete", "job_id": job, "result": None}])

    async def others(self, _):
        chance = self.chance
        device = f"/api/devices/{self.name}"
        await self.publish("PUT", device, {"name": "door"})
        await self.publish("POST", f"{device}/status", {"status": chance.choice(["online", "offline"])})
        await self.publish("PUT", "/api/characteristics/c1", {"name": "width"})
        for _ in range(chance.randint(1, 5)):
            await self.publish("POST", "/api/characteristics/c1/samples", {"value": chance.gauss(0, 1)})

    async def keep_steady(self):
        """One long job that some readers listen to."""
        await self.publish("POST", "/api/jobs", {"job_id": "steady", "job_type": "scan", "status": "in_progress"})
        percent = 0.0
        while not self.run.is_over:
            percent += (99 - percent) / 200
            await self.publish("POST", "/api/jobs/steady/progress", {"progress": percent, "message": f"{percent}"})
            await asyncio.sleep(self.chance.uniform(0, 0.05))
        await self.publish("POST", "/api/jobs/steady/complete", {})


class Reader:
    """Switches between transports, uses any of its recent cursors, and disconnects at any moment."""

    def __init__(self, run, school, scope, number):
        self.run, self.school, self.scope = run, school, scope
        self.chance = random.Random(f"{run.seed}-reader-{school.number}-{number}")
        # Faults are injected into what a reader of every tick receives.
        self.every_tick = self.chance.random() < 0.5 or run.has_plant
        self.reading = Reading(school, scope, self.every_tick, f"reader {number} of {scope} in school {school.number}")
        self.token = wire.token(SECRET, school.number, "viewer")
        self.connections = 0

    def path(self):
        tick_ms = 0 if self.every_tick else self.chance.choice([1, 20, 100])
        return f"/events/{self.scope.tail}{'&' if '?' in self.scope.tail else '?'}tick_ms={tick_ms}"

    async def roam(self, until=lambda: False):
        while not until():
            try:
                await self.listen(until)
            except wire.Gone:
                await asyncio.sleep(self.chance.uniform(0, 0.1))
            except wire.Refused as refused:
                # The steady job does not exist yet, or the server is stopping.
                if refused.status not in (404, 503):
                    raise Broken(f"{self.reading.name}: {refused}") from refused
                await asyncio.sleep(self.chance.uniform(0, 0.2))

    async def listen(self, until):
        kinds = [kind for kind in TRANSPORTS if kind is not wire.Multiplexed or "?" not in self.scope.tail]
        stream = self.chance.choice(kinds)()
        cursors = self.reading.cursors
        cursor = None
        if cursors:
            cursor = cursors[-1] if self.chance.random() < 0.7 else self.chance.choice(cursors)
        life = self.run.server.power_losses
        await stream.open(self.run.server.port, self.path(), self.token, cursor)
        try:
            if life != self.run.server.power_losses:
                # It is unknown which life answered.
                return
            self.connections += 1
            self.reading.connected(stream.name, cursor, life)
            left = self.chance.choice([5, 50, 500, 5_000])
            while left and not until():
                left -= 1
                message = await asyncio.wait_for(stream.next(), wire.PATIENCE_SECS)
                if stream.name == "multiplexed" and message["type"] == "error" and message.get("code") == "not_found":
                    return
                for message in self.run.plant.spoil(self, message):
                    self.reading.take(message)
                if message["type"] == "closing":
                    self.run.closings += 1
                    return
                if self.chance.random() < 0.001:
                    # Read slowly, so that ticks are conflated or the stream lags.
                    await asyncio.sleep(self.chance.uniform(0, 1))
        except asyncio.TimeoutError as late:
            # A frozen or dead server is silent; a healthy one sends a heartbeat every second.
            if not self.run.is_disturbed(wire.PATIENCE_SECS):
                raise Broken(f"{self.reading.name}: no sign of life for {wire.PATIENCE_SECS} s") from late
        finally:
            stream.cut()

    def has_reached(self, heads):
        now = self.reading.now
        return now is not None and now.end >= heads[self.school.number]


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


async def end(tasks):
    """Cancels the tasks until they end. Before Python 3.12, `asyncio.wait_for` loses a cancellation that coincides with the end of what it
    waits for, such as a rejected connection; then a worker would retry for ever."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=1)


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
            self.readers += [Reader(self, school, kinds[number % len(kinds)], number) for number in range(options.readers)]
        self.is_over, self.refused, self.closings, self.happened = False, 0, 0, dict.fromkeys(self.faults, 0)
        self.lost_ticks, self.disturbed_at = 0, 0.0
        self.plant = Plant(options.plant, time.monotonic() + min(5, options.seconds / 3))

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
    try:
        await run.carry_out()
        print(json.dumps(run.figures()), flush=True)
    except Broken as broken:
        for reader in run.readers:
            (Path(folder) / f"{reader.reading.name}.messages".replace("/", "_")).write_text("\n".join(reader.reading.lately))
        print(json.dumps(run.figures()), flush=True)
        print(f"BROKEN (seed {options.seed}): {broken}", flush=True)
        return 1
    except Exception:
        # The run failed, not the server. Print this before anything else can fail.
        traceback.print_exc()
        return 2
    finally:
        await end(run.tasks)
        await run.server.close()
    shutil.rmtree(folder)
    return 0


sys.exit(asyncio.run(main()))
