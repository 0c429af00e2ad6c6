"""Workers that publish and readers that listen, to the server that is given: shared by the chaos of one server and of several."""

import asyncio
import json
import random

import wire
from ledger import Broken
from server import SECRET

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
            life = self.run.life
            try:
                status, answer = await wire.request(self.run.port(self.chance), method, path, self.token, data, headers, abandon)
            except wire.Gone:
                await asyncio.sleep(AGAIN_SECS)
                continue
            if life != self.run.life:
                # It is unknown which life answered.
                continue
            # A line of a batch may be rejected while others are carried out; all are sent again with the same key.
            if status in (429, 503) or (content is not None and b'"status":503' in answer):
                self.run.refused += 1
                await asyncio.sleep(AGAIN_SECS)
            elif status >= 300:
                raise self.refused(f"{method} {path} {data[:200]}: {status} {answer[:500]}", status)
            else:
                return answer, life

    def refused(self, what, _status):
        """Returns what to do about a request that was rejected."""
        return Broken(what)

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
                raise self.refused(f"batch: {line}", line["status"])
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
            while (percent < 90 or self.run.is_lull) and not self.run.is_over:
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

    def may_end_steady(self):
        return self.run.is_over

    async def keep_steady(self):
        """One long job that some readers listen to."""
        await self.publish("POST", "/api/jobs", {"job_id": "steady", "job_type": "scan", "status": "in_progress"})
        percent = 0.0
        while not self.may_end_steady():
            percent += (99 - percent) / 200
            await self.publish("POST", "/api/jobs/steady/progress", {"progress": percent, "message": f"{percent}"})
            await asyncio.sleep(self.chance.uniform(0, 0.05))
        await self.publish("POST", "/api/jobs/steady/complete", {})


class Reader:
    """Switches between transports, uses any of its recent cursors, and disconnects at any moment."""

    def __init__(self, run, school, scope, number, reading):
        self.run, self.school, self.scope = run, school, scope
        self.chance = random.Random(f"{run.seed}-reader-{school.number}-{number}")
        # Faults are injected into what a reader of every tick receives.
        self.every_tick = self.chance.random() < 0.5 or run.has_plant
        self.reading = reading(school, scope, self.every_tick, f"reader {number} of {scope} in school {school.number}")
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
        life, oldest = self.run.life, self.run.oldest_life()
        await stream.open(self.run.port(self.chance), self.path(), self.token, cursor)
        try:
            if life != self.run.life:
                # It is unknown which life answered.
                return
            self.connections += 1
            self.reading.connected(stream.name, cursor, oldest)
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


async def end(tasks):
    """Cancels the tasks until they end. Before Python 3.12, `asyncio.wait_for` loses a cancellation that coincides with the end of what it
    waits for, such as a rejected connection; then a worker would retry for ever."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=1)
