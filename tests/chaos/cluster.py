"""Chaos with several nodes: real nodes on a real PostgreSQL with a standby, rung by a real Redis, each behind a proxy that breaks the
connections. Workers publish to any node with idempotent retries, readers move between nodes and transports with their cursors, devices
send heartbeats to alternating nodes, and a receiver takes what a notifier delivers. Some jobs are abandoned, logs are kept for seconds
only, and some readers stay away for longer. Afterwards `truth.py` checks every guarantee against the logs of the databases.

    python3 tests/chaos/cluster.py --binary target/release/tidings --seconds 600 --seed 7
    python3 tests/chaos/cluster.py --binary target/debug/tidings --seconds 60 --faults promote,node-freeze --pooler
    python3 tests/chaos/cluster.py --binary target/debug/tidings --seconds 60 --faults postgres-restart,node-kill --synchronous milestone

Exit code 0: every guarantee held. 1: one was broken; the run prints it and keeps the folder with the logs, the databases and the times of
the faults. 2: the run itself failed."""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import wire
from clients import Reader, Worker, end, scopes
from ledger import Broken
from outcome import TooShort, of_readers, outcome
from parts import PATIENCE_SECS, PgBouncer, Postgres, Redis
from proxy import Link
from server import SECRET, Server
from silence import ABANDONED, END_SECS, LIMITS, REPORTED, check_silence
from sources import DEAD_LETTERS, HeartbeatSender, Receiver, check_devices, check_notifier
from truth import KEEP_SWEPT, WHOLE_LOGS, Log, Reading, School, Truth, Walk

# What happens to nodes, to the bus, and to the database. `promote` loses commits. With `--synchronous milestone`, `postgres-restart` loses
# the ticks that were not yet on disk. The others lose nothing.
FAULTS = (
    "node-kill", "node-term", "node-freeze", "node-cut-postgres", "node-cut-redis",
    "redis-kill", "redis-freeze", "redis-slow", "redis-cut",
    "postgres-restart", "postgres-slow", "postgres-cut", "promote",
)
# After a life of the database has ended, this must pass before the next one ends, so that it is known which life a reader came to.
LIVES_APART_SECS = 15
READY_SECS = 60
# How long events are kept, and how long a reader stays away to find that its cursor has expired: the sweep takes turns of 10 s.
RETENTION_SECS, AWAY_SECS = 5, 18
# Counts the statements that may still commit. One whose answer nobody takes cannot.
BUSY = """SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'active' AND pid <> pg_backend_pid()
    AND wait_event IS DISTINCT FROM 'ClientWrite'"""


class Lost(Exception):
    """A request was rejected because the database lost what it relied on, or because a job has timed out."""


class Publisher(Worker):
    """A worker that begins anew when the database has lost its job."""

    may_time_out = False

    async def work(self):
        number = 0
        while not self.run.is_over:
            number += 1
            self.began = self.run.life
            try:
                kinds = [self.a_job] if self.run.is_lull else [self.a_job, self.a_job, self.a_job_in_batches, self.others]
                await self.chance.choice(kinds)(f"{self.name}-{number}")
            except Lost:
                self.run.begun_anew += 1

    def may_end_steady(self):
        return self.run.is_calm

    async def keep_steady(self):
        """Until nothing can lose it any more: a reader of a subject that does not exist is rejected for ever."""
        while True:
            self.began = self.run.life
            try:
                # Some readers listen to this one.
                await self.publish("PUT", "/api/characteristics/c1", {"name": "width"})
                await super().keep_steady()
                return
            except Lost:
                self.run.begun_anew += 1

    async def abandon_jobs(self):
        """Begins jobs, and reports on each until it is abandoned."""
        async def until_abandoned(job):
            for number in range(self.chance.randint(0, 3)):
                await self.publish("POST", f"/api/jobs/{job}/progress", {"progress": 10 * number + 1})

        await self._keep_beginning(ABANDONED, until_abandoned, 5)

    async def report_jobs(self):
        """Begins jobs, and reports on each in time until it ends."""
        async def until_complete(job):
            ends_at = time.monotonic() + self.chance.uniform(5, 25)
            number = 0
            while time.monotonic() < ends_at and not self.run.is_over:
                number += 1
                await self.publish("POST", f"/api/jobs/{job}/progress", {"progress": None, "message": f"{number}"})
                await asyncio.sleep(self.chance.uniform(0, 1))
            await self.publish("POST", f"/api/jobs/{job}/complete", {})

        await self._keep_beginning(REPORTED, until_complete, 1)

    async def _keep_beginning(self, prefix, carry_on, pause):
        number = 0
        while not self.run.is_over:
            number += 1
            self.began, self.may_time_out = self.run.life, True
            job = f"{prefix}{self.name}-{number}"
            try:
                await self.publish("POST", "/api/jobs", {"job_id": job, "job_type": "scan", "status": "in_progress", **LIMITS})
                await carry_on(job)
            except Lost:
                self.run.begun_anew += 1
            await asyncio.sleep(self.chance.uniform(0, pause))
            while self.run.is_lull and not self.run.is_over:
                await asyncio.sleep(0.1)

    def refused(self, what, status):
        # A request may have waited for longer than the job's limit. Whether that was so is checked afterwards.
        if self.may_time_out and status == 409:
            return Lost()
        # What the database has lost is not found, or in an earlier state.
        return Lost() if self.began != self.run.life and status in (404, 409) else Broken(what)


class Roamer(Reader):
    """A reader that stays away now and then, for so long that its cursor expires."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.leaves_at = time.monotonic() + self.chance.uniform(0, 30)

    async def listen(self, until):
        if self.reading.cursors and time.monotonic() > self.leaves_at and not self.run.is_over:
            back_at = time.monotonic() + AWAY_SECS
            self.leaves_at = back_at + self.chance.uniform(0, 120)
            while time.monotonic() < back_at and not until():
                await asyncio.sleep(0.2)
        await super().listen(until)


class Node:
    """One node, with a link of its own to each part."""

    def __init__(self, number):
        self.number, self.server, self.lock = number, None, asyncio.Lock()
        self.postgres, self.direct, self.redis = None, None, None
        self.disturbed, self.suspended = [], []  # (from, to), on the wall clock

    async def until_ready(self):
        deadline = time.monotonic() + READY_SECS
        while time.monotonic() < deadline:
            try:
                status, body = await wire.request(self.server.port, "GET", "/readyz", "")
                if status == 200:
                    return
            except wire.Gone as gone:
                body = gone
            await asyncio.sleep(0.1)
        raise Broken(f"node {self.number} is not ready within {READY_SECS} s of a fault: {body}")


class Run:
    """One run."""

    def __init__(self, options, folder):
        self.options, self.folder = options, Path(folder)
        self.seed, self.seconds = options.seed, options.seconds
        self.faults = [name for name in options.faults.split(",") if name]
        self.plant, self.has_plant = self, False
        self.nodes = [Node(number) for number in range(1, options.nodes + 1)]
        self.schools = [School(number) for number in range(1, options.schools + 1)]
        self.postgres_lock, self.redis_lock = asyncio.Lock(), asyncio.Lock()
        self.ends_of_lives = {"promote"} if options.synchronous == "full" else {"promote", "postgres-restart"}
        self.life, self.past_logs, self.is_life_ending, self.is_life_over = 0, [], False, False
        self.life_began_at = time.monotonic() - LIVES_APART_SECS
        self.crashed = set()  # the lives that ended with a crash: only ticks may be lost
        self.is_lull = False  # workers only report progress, so that a crash has ticks to lose
        # Whether the run is over, and whether all of its faults are.
        self.is_over, self.is_calm = False, False
        self.refused, self.closings, self.begun_anew = 0, 0, 0
        self.happened, self.disturbances, self.disturbed_at = dict.fromkeys(self.faults, 0), 0, 0.0
        self.tasks, self.readers, self.workers, self.senders = [], [], [], []
        self.parts, self.links = [], []

    # What workers and readers ask.

    def port(self, chance):
        return chance.choice(self.nodes).server.port

    def oldest_life(self):
        """Returns the oldest life that may answer who connects now: nodes remember the last one until they have reached the next."""
        return self.life - self.is_life_over

    def spoil(self, _, message):
        return [message]

    def is_disturbed(self, within):
        return self.disturbances > 0 or time.monotonic() - self.disturbed_at < within + 5

    # The parts.

    async def link(self, upstream):
        link = await Link(upstream).listen()
        self.links.append(link)
        return link

    async def build(self):
        self.primary = await Postgres(self.folder, "postgres-0").create()
        self.parts.append(self.primary)
        self.to_primary = await self.link(self.primary.port)
        await self.add_standby()
        behind = self.to_primary.port
        if self.options.pooler:
            pooler = await PgBouncer(self.folder, "pgbouncer", behind).start()
            self.parts.append(pooler)
            behind = pooler.port
        if self.options.bus == "redis":
            self.redis = await Redis(self.folder, "redis").start()
            self.parts.append(self.redis)
        self.receiver = await Receiver(self.seed).listen()
        for node in self.nodes:
            node.postgres, node.direct = await self.link(behind), await self.link(self.to_primary.port)
            settings = {
                "TIDINGS_DATABASE_URL": f"postgres://tidings@127.0.0.1:{node.postgres.port}/tidings",
                "TIDINGS_SYNCHRONOUS": self.options.synchronous,
                "TIDINGS_RETENTION_SECS": str(RETENTION_SECS),
                "TIDINGS_NOTIFIERS": json.dumps([self.receiver.notifier()]),
            }
            if self.options.pooler:
                # Debian's PgBouncer has no prepared statements.
                settings["TIDINGS_PREPARED_STATEMENTS"] = "false"
                settings["TIDINGS_DIRECT_URL"] = f"postgres://tidings@127.0.0.1:{node.direct.port}/tidings"
            if self.options.bus == "redis":
                node.redis = await self.link(self.redis.port)
                settings["TIDINGS_BUS_URL"] = f"redis://127.0.0.1:{node.redis.port}"
            folder = self.folder / f"node-{node.number}"
            folder.mkdir()
            is_other = self.options.first_binary and node.number == 1
            node.server = Server(self.options.first_binary if is_other else self.options.binary, folder, [], settings)
            await node.server.start()
        await asyncio.to_thread(self.primary.query, KEEP_SWEPT)

    async def add_standby(self):
        """Starts a standby of the primary, and waits until it has everything."""
        self.replication = await self.link(self.primary.port)
        self.standby = Postgres(self.folder, f"postgres-{self.life + 1}")
        self.parts.append(self.standby)
        await self.standby.standby_of(self.replication.port)
        written = await asyncio.to_thread(self.primary.query, "SELECT pg_current_wal_lsn()")
        for _ in range(600):
            if await asyncio.to_thread(self.standby.query, f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == "t":
                return
            await asyncio.sleep(0.1)
        raise RuntimeError("the standby does not follow")

    # The faults.

    async def disturb(self, chance):
        while not self.is_over and self.faults:
            await asyncio.sleep(chance.uniform(0.2, 3))
            name = chance.choice(self.faults)
            ends = sorted(self.ends_of_lives.intersection(self.faults))
            if ends and self.life == 0 and time.monotonic() - self.begun_at > self.seconds / 3:
                # However short the run is, it ends a life.
                name = chance.choice(ends)
            if name in self.ends_of_lives:
                if self.is_life_ending or time.monotonic() - self.life_began_at < LIVES_APART_SECS:
                    continue
                self.is_life_ending = True
            self.disturbances += 1
            self.disturbed_at = time.monotonic()
            try:
                await self._fault(name, chance)
            finally:
                self.disturbances -= 1
                self.disturbed_at = time.monotonic()
            self.happened[name] += 1

    async def _fault(self, name, chance):
        where, _, what = name.partition("-")
        began = time.time()
        if where == "node":
            node = chance.choice(self.nodes)
            async with node.lock:
                await getattr(self, f"node_{what.replace('-', '_')}")(node, chance)
            node.disturbed.append((began, time.time()))
            self._note(f"{name} {node.number}", began)
            return
        async with self.redis_lock if where == "redis" else self.postgres_lock:
            await getattr(self, name.replace("-", "_"))(chance)
        self._note(name, began)
        if where != "redis":
            for node in self.nodes:
                node.disturbed.append((began, time.time()))

    def _note(self, fault, began):
        """Notes when a fault began and ended, for those who read the logs of a run that has failed."""
        times = (datetime.fromtimestamp(at, timezone.utc).strftime("%T.%f") for at in (began, time.time()))
        with open(self.folder / "faults", "a") as notes:
            print(*times, fault, file=notes)

    async def _start(self, node):
        # Without its database a node does not start. The operator starts it again.
        deadline = time.monotonic() + PATIENCE_SECS + READY_SECS
        while True:
            try:
                return await node.server.start()
            except Broken:
                if time.monotonic() > deadline or not self.is_disturbed(5):
                    raise
                await asyncio.sleep(0.2)

    async def node_kill(self, node, chance):
        await node.server.end()
        await asyncio.sleep(chance.choice([0, chance.uniform(0, 3)]))
        await self._start(node)

    async def node_term(self, node, _):
        await node.server.terminate()
        await self._start(node)

    async def node_freeze(self, node, chance):
        began = time.time()
        await node.server.freeze_for(chance.choice([chance.uniform(0.2, 2), chance.uniform(2, 15)]))
        node.suspended.append((began, time.time()))

    async def _cut(self, links, chance):
        how = chance.choice(["refuse", "hold", "hold up", "hold down", "reset"])
        for link in links:
            if how == "refuse":
                link.refuse()
            elif how == "reset":
                link.cut()
            else:
                link.hold(up=how != "hold down", down=how != "hold up")
        await asyncio.sleep(0 if how == "reset" else chance.uniform(0.2, 6))
        for link in links:
            if how != "refuse" and chance.random() < 0.5:
                link.cut()
            link.heal()

    async def _slow(self, links, chance):
        for link in links:
            link.slow(chance.uniform(0.001, 0.15), chance.choice([None, 200_000]))
        await asyncio.sleep(chance.uniform(0.5, 5))
        for link in links:
            link.heal()

    async def node_cut_postgres(self, node, chance):
        await self._cut([node.postgres, node.direct], chance)

    async def node_cut_redis(self, node, chance):
        await self._cut([node.redis], chance)

    async def redis_kill(self, chance):
        await self.redis.end()
        await asyncio.sleep(chance.choice([0, chance.uniform(0, 4)]))
        await self.redis.start()

    async def redis_freeze(self, chance):
        self.redis.freeze()
        await asyncio.sleep(chance.uniform(0.2, 9))
        self.redis.thaw()

    async def redis_slow(self, chance):
        await self._slow([node.redis for node in self.nodes], chance)

    async def redis_cut(self, chance):
        await self._cut([node.redis for node in self.nodes], chance)

    async def postgres_restart(self, chance):
        """Every process of the database ends at once, without a word."""
        if "postgres-restart" not in self.ends_of_lives:
            await self._restart_primary(chance)
            return
        self.crashed.add(self.life)
        self.is_lull = True
        await asyncio.to_thread(self.primary.freeze_wal_writer)
        await asyncio.sleep(chance.choice([0, chance.uniform(0.3, 1.5)]))
        await self._end_life()
        self.is_lull = False
        await self._restart_primary(chance)
        await self._begin_life()

    async def _restart_primary(self, chance):
        await self.primary.end()
        await asyncio.sleep(chance.choice([0, chance.uniform(0, 2)]))
        await self.primary.start()

    async def _end_life(self):
        """Records all that the primary has committed, and ends it. Nothing can be committed or answered in between."""
        self.to_primary.hold()
        # Postgres ends a transaction whose next statement is held back, so that those that wait for its locks can end.
        deadline = time.monotonic() + READY_SECS
        while await asyncio.to_thread(self.primary.query, BUSY) != "0":
            if time.monotonic() > deadline:
                raise RuntimeError(f"statements are still running {READY_SECS} s after the nodes were cut off")
            await asyncio.sleep(0.01)
        self.past_logs.append(await self.whole_logs())
        # A process of Postgres may not end before somebody takes what it has sent, or its connection ends.
        self.to_primary.cut()
        await self.primary.end()
        self.life, self.is_life_over = self.life + 1, True

    async def _begin_life(self):
        """Lets the nodes reach the database that has taken over."""
        self.to_primary.upstream = self.primary.port
        self.to_primary.cut()
        self.to_primary.heal()
        await asyncio.gather(*(node.until_ready() for node in self.nodes if not node.lock.locked()))
        self.is_life_ending, self.is_life_over, self.life_began_at = False, False, time.monotonic()

    async def postgres_slow(self, chance):
        await self._slow([self.to_primary], chance)

    async def postgres_cut(self, chance):
        await self._cut([self.to_primary], chance)

    async def promote(self, chance):
        """The primary is lost, and a standby that lacks its last commits takes its place."""
        self.replication.hold()
        await asyncio.sleep(chance.choice([0, chance.uniform(0.1, 2)]))
        self.replication.refuse()
        await self._end_life()
        await self.standby.promote()
        self.primary = self.standby
        await self.add_standby()
        await self._begin_life()

    # The run.

    async def carry_out(self):
        await self.build()
        for school in self.schools:
            name = f"w{school.number}"
            self.workers += [Publisher(self, school, f"{name}.{number}") for number in range(self.options.workers)]
            self.senders += [HeartbeatSender(self, school, f"d{school.number}.{number}") for number in range(self.options.devices)]
            kinds = scopes(school.number)
            for number in range(self.options.readers):
                reader = Roamer(self, school, kinds[number % len(kinds)], number, Reading)
                reader.reading.life = lambda: self.life
                self.readers.append(reader)
        readers = [asyncio.create_task(reader.roam(lambda: self.is_over)) for reader in self.readers]
        workers = [asyncio.create_task(worker.work()) for worker in [*self.workers, *self.senders]]
        for school in self.schools:
            workers.append(asyncio.create_task(Publisher(self, school, f"steady{school.number}").keep_steady()))
            workers.append(asyncio.create_task(Publisher(self, school, f"a{school.number}").abandon_jobs()))
            workers.append(asyncio.create_task(Publisher(self, school, f"r{school.number}").report_jobs()))
        disturbances = [asyncio.create_task(self.disturb(random.Random(f"{self.seed}-{number}"))) for number in range(self.options.at_once)]
        self.begun_at = time.monotonic()
        self.tasks = [*readers, *workers, *disturbances]
        done, _ = await asyncio.wait(self.tasks, timeout=self.seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        self.is_over = True
        await asyncio.gather(*disturbances)
        self.is_calm = True
        for link in self.links:
            link.heal()
        await asyncio.gather(*(node.until_ready() for node in self.nodes))
        _, unanswered = await asyncio.wait([*workers, *readers], timeout=4 * wire.PATIENCE_SECS)
        if unanswered:
            raise Broken(f"{len(unanswered)} workers and readers still wait for an answer")
        await asyncio.gather(*workers, *readers)
        await self.check()
        if self.life == 0 and self.ends_of_lives.intersection(self.faults):
            raise TooShort("the database has lost nothing, although it was to be promoted or to crash")
        if not (self.swept and self.stalled and self.timed_out):
            raise TooShort("retention has deleted nothing, or no job was silent for too long")

    async def check(self):
        await asyncio.gather(*(self.until_abandoned_fail(school) for school in self.schools))
        await asyncio.gather(*(self.end_leftovers(school) for school in self.schools))
        await self.until_quiet()
        logs = [*self.past_logs, await self.whole_logs()]
        truths = {school.number: Truth(school, [log.get(school.number, Log()) for log in logs]) for school in self.schools}
        await self.all_reach(truths)
        # Retention has gone on meanwhile.
        for number, log in (await self.whole_logs()).items():
            if log.messages != truths[number].messages:
                raise Broken(f"school {number}: the log has changed after everything had ended")
            truths[number].swept[-1] = log.swept
        self.swept = sum(truth.check_retention(RETENTION_SECS) for truth in truths.values())
        silent = [check_silence(self, truth) for truth in truths.values()]
        self.stalled, self.timed_out = (sum(counts) for counts in zip(*silent))
        self.lost = sum(truth.check_answers(self.crashed) for truth in truths.values())
        walks = [Walk(truths[reader.school.number], reader.reading).check() for reader in self.readers]
        self.mid_stream_resets = sum(walk.mid_stream_resets for walk in walks)
        self.expired = sum(walk.expired for walk in walks)
        self.false_offline_checked = sum(check_devices(self, truth) for truth in truths.values())
        self.given_up = await check_notifier(self.receiver, truths, lambda: (self.primary.rows(DEAD_LETTERS), Log.of_rows(self.primary.rows(WHOLE_LOGS))))

    async def whole_logs(self):
        """Reads the logs of all schools, with what retention has deleted."""
        return Log.of_rows(await asyncio.to_thread(self.primary.rows, WHOLE_LOGS))

    async def until_abandoned_fail(self, school):
        """Waits until no abandoned job is in progress."""
        token, deadline = wire.token(SECRET, school.number, "viewer"), time.monotonic() + END_SECS
        while time.monotonic() < deadline:
            _, body = await wire.request(self.nodes[0].server.port, "GET", "/api/jobs?status=in_progress&limit=100", token)
            running = [job["job_id"] for job in json.loads(body)["jobs"] if job["job_id"].startswith(ABANDONED)]
            if not running:
                return
            await asyncio.sleep(0.5)
        raise Broken(f"school {school.number}: these jobs were abandoned {END_SECS:.0f} s ago and are in progress: {running}")

    async def end_leftovers(self, school):
        """Ends the jobs whose end a promotion has lost: the server goes on to report on a job that falls silent."""
        port, token = self.nodes[0].server.port, wire.token(SECRET, school.number, "worker")
        while True:
            _, body = await wire.request(port, "GET", "/api/jobs?status=in_progress&limit=100", token)
            jobs = json.loads(body)["jobs"]
            if not jobs:
                return
            for job in jobs:
                status, answer = await wire.request(port, "POST", f"/api/jobs/{job['job_id']}/cancel", token, b'{"force": true}')
                if status != 200:
                    raise Broken(f"{job['job_id']} cannot be cancelled: {status} {answer}")
                school.acknowledge(json.loads(answer), self.life)

    async def until_quiet(self):
        """Waits until nothing is written any more: the devices' leases have ended."""
        deadline = time.monotonic() + 4 * wire.PATIENCE_SECS
        while time.monotonic() < deadline:
            online = 0
            for school in self.schools:
                token = wire.token(SECRET, school.number, "viewer")
                _, body = await wire.request(self.nodes[0].server.port, "GET", "/api/devices?status=online&limit=100", token)
                online += sum(device["device_id"].startswith("d") for device in json.loads(body)["devices"])
            if not online:
                return
            await asyncio.sleep(0.5)
        raise Broken(f"{online} devices that are silent for {4 * wire.PATIENCE_SECS:.0f} s are online")

    async def all_reach(self, truths):
        def has_reached(reader):
            reading = reader.reading
            return reading.is_ready and reading.spot == truths[reader.school.number].head()

        self.tasks = [asyncio.create_task(reader.roam(lambda reader=reader: has_reached(reader))) for reader in self.readers]
        done, late = await asyncio.wait(self.tasks, timeout=4 * wire.PATIENCE_SECS, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if late:
            behind = [f"{reader.reading.name} at {reader.reading.spot}" for reader in self.readers if not has_reached(reader)]
            heads = {number: truth.head() for number, truth in truths.items()}
            raise Broken(f"these readers do not reach the heads {heads}: {behind}")

    def figures(self):
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "faults": self.happened,
            "starts": [node.server.starts for node in self.nodes if node.server],
            "acknowledged": sum(len(school.acknowledged) for school in self.schools),
            "events_received": sum(reader.reading.events for reader in self.readers),
            "connections": sum(reader.connections for reader in self.readers),
            "resets": sum(reader.reading.resets for reader in self.readers),
            "resets_of_open_streams": getattr(self, "mid_stream_resets", None),
            "resets_of_expired_cursors": getattr(self, "expired", None),
            "deleted_by_retention": getattr(self, "swept", None),
            "stalled": getattr(self, "stalled", None),
            "timed_out": getattr(self, "timed_out", None),
            "lives": self.life + 1,
            "acknowledged_and_lost": getattr(self, "lost", None),
            "heartbeats": sum(len(sender.heartbeats) for sender in self.senders),
            "ends_of_leases_judged": getattr(self, "false_offline_checked", None),
            "delivered": len(self.receiver.delivered) if hasattr(self, "receiver") else 0,
            "given_up_as_too_old": getattr(self, "given_up", None),
            "begun_anew": self.begun_anew,
            "closings": self.closings,
            "refused": self.refused,
        }

    def evidence(self):
        return of_readers(self.readers)

    async def close(self):
        await end(self.tasks)
        for node in self.nodes:
            if node.server:
                await node.server.close()
        for link in self.links:
            await link.close()
        for part in reversed(self.parts):
            await part.end()


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", default=",".join(FAULTS), help=f"a list of {', '.join(FAULTS)}")
    parser.add_argument("--at-once", type=int, default=2, help="faults at the same time")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--bus", choices=("redis", "postgres"), default="redis", help="what rings between the nodes")
    parser.add_argument("--synchronous", choices=("full", "milestone"), default="full", help="what the nodes wait for; see the setting")
    parser.add_argument("--first-binary", help="the program of the first node, such as that of an earlier version")
    parser.add_argument("--pooler", action="store_true", help="PgBouncer in front of PostgreSQL")
    parser.add_argument("--schools", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="workers per school")
    parser.add_argument("--readers", type=int, default=8, help="readers per school")
    parser.add_argument("--devices", type=int, default=4, help="devices per school")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    if options.bus != "redis":
        options.faults = ",".join(name for name in options.faults.split(",") if "redis" not in name)
    unknown = set(options.faults.split(",")) - {"", *FAULTS}
    if unknown:
        parser.error(f"--faults: unknown: {', '.join(sorted(unknown))}; expected: {', '.join(FAULTS)}")
    folder = tempfile.mkdtemp(prefix="tidings-chaos-")
    # The databases run as another user.
    os.chmod(folder, 0o755)
    run = Run(options, folder)
    print(f"chaos: seed {options.seed}, in {folder}", flush=True)
    return await outcome(run, folder, run.carry_out)


sys.exit(asyncio.run(main()))
