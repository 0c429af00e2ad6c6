"""Chaos for the client libraries: readers and publishers that use the clients for JavaScript, Python and Rust, each a process of its own, behind proxies
that cut, stall and truncate connections, while the server is killed and restarted, tokens and tickets expire, and the processes are stopped for a
while. Afterwards `deliveries.py` checks every guarantee.

    python3 tests/chaos/clients_run.py --binary target/debug/tidings --rust target/debug/examples/chaos-client --seconds 20 --seed 7

It needs `clients/js/dist` with its development dependencies, and a Python with httpx and websockets.

A program of `programs` is called with one of

    watch URL FOLDER TRANSPORT SCOPE TICK_MS [ticket]
    publish URL FOLDER NAME

FOLDER has the files `viewer` and `worker`, which always contain a token that is still valid for a few seconds, and `server`, the server's own URL. When
`stop` appears, a publisher ends its jobs and waits for all answers. A reader ends after the job `the-end`. Each prints one JSON object per line: a
reader what the client delivers, in the end `{"type": "subjects"}` with the state that the client keeps; a publisher `{"type": "answered", "event"}` for
each answer that the client shows, `{"type": "ended", "job_id", "status"}` for each job whose end was confirmed, and in the end
`{"type": "outbox", "waiting"}`.

Exit code 0: every guarantee held. 1: one was broken; the run prints it and keeps its folder. 2: the run itself failed.
`--plant` injects one fault into what was recorded, which the check must detect; `--transcript` keeps the record for `deliveries.py`."""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import deliveries
import wire
from clients import Worker, end
from ledger import Broken
from outcome import outcome
from proxy import Link
from server import SECRET, Server

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SCHOOL = 1
SETTINGS = {"TIDINGS_JWT_LEEWAY_SECS": "0", "TIDINGS_TICKET_TTL_SECS": "2", "TIDINGS_TICKET_GRACE_SECS": "0"}
# A token is valid for so long, and is replaced so often.
TOKEN_SECS, FRESH_SECS = 4, 1
# How long a process may take for what needs no more than a connection, after the last fault.
PATIENCE_SECS = 120
# More than the states that the server reads at once, so that subjects change while a snapshot is read.
OLD_JOBS = 300
# Each program must have come back at least once with another token.
CONNECTIONS_MIN = 3
LONGEST_LINE = 64 * 1024 * 1024
# (library, transport, scope, whether every tick, how it identifies itself)
READERS = [
    ("javascript", "sse", "jobs", True, "token"),
    ("javascript", "websocket", "schools/1", True, "token"),
    ("javascript", "poll", "jobs", False, "token"),
    ("javascript", "sse", "jobs", False, "ticket"),
    ("javascript", "websocket", "jobs", True, "ticket"),
    ("javascript", "poll", "jobs", True, "ticket"),
    ("python", "sse", "schools/1", True, "token"),
    ("python", "websocket", "jobs", True, "token"),
    ("python", "websocket", "schools/1", False, "token"),
    ("python", "poll", "schools/1", False, "token"),
    ("rust", "sse", "schools/1", True, "token"),
    ("rust", "sse", "jobs", False, "token"),
    ("rust", "poll", "jobs", True, "token"),
]
LIBRARIES = ("javascript", "python", "rust")


class Program:
    """A process that uses a client library, and the proxy between it and the server."""

    def __init__(self, run, name, library):
        self.run, self.name, self.library = run, name, library
        self.link, self.process, self.lines = None, None, []

    async def start(self, mode, *arguments):
        self.link = await Link(self.run.server.port).listen()
        with open(self.run.folder / f"{self.name}.log", "wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.run.command(self.library), mode, f"http://127.0.0.1:{self.link.port}", str(self.run.tokens), *arguments,
                env=self.run.environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log, limit=LONGEST_LINE,
            )
        self.reading = asyncio.create_task(self._read())

    async def _read(self):
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def has_had(self, kind):
        """Whether the program has printed a line of this type."""
        return any(line["type"] == kind for line in self.lines)

    async def finished(self):
        await self.reading
        if code := await self.process.wait():
            said = (self.run.folder / f"{self.name}.log").read_text(errors="replace")[-2_000:]
            raise Broken(f"{self.name} ended with exit code {code}: {said}")

    async def freeze(self, secs):
        self.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(secs)
        finally:
            self.process.send_signal(signal.SIGCONT)

    async def close(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        if self.link:
            await self.link.close()


class Answers:
    """A school, as `clients.Worker` knows it."""

    number = SCHOOL

    def __init__(self):
        self.cursors = []

    def acknowledge(self, message, _life):
        self.cursors.append(message["cursor"])


class Background(Worker):
    """Publishes devices, samples and bursts of progress, without a proxy."""

    async def work(self):
        number = 0
        while not self.run.is_over:
            number += 1
            await self.chance.choice([self.a_job, self.a_job_in_batches, self.others])(f"{self.name}-{number}")
            await asyncio.sleep(self.chance.uniform(0.05, 0.4))


class Run:
    """One run."""

    # What `clients.Worker` asks for: no history is lost here.
    life, is_lull = 0, False

    def __init__(self, options, folder):
        self.seed, self.seconds, self.rust = options.seed, options.seconds, Path(options.rust).resolve()
        self.folder, self.tokens = Path(folder), Path(folder) / "tokens"
        self.tokens.mkdir()
        self.chance = random.Random(options.seed)
        self.server = Server(options.binary, folder, [], SETTINGS)
        self.environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy") and not name.startswith("TIDINGS_")}
        self.environment |= {"PYTHONPATH": str(ROOT / "clients/python/src"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.readers, self.publishers = {}, {}
        for library, transport, scope, _, secret in READERS:
            name = f"{library}-{transport}-{scope.replace('/', '')}-{secret}"
            self.readers[name] = Program(self, name, library)
        for library in LIBRARIES:
            name = f"{library}-publisher"
            self.publishers[name] = Program(self, name, library)
        self.answers, self.tasks = Answers(), []
        self.is_over, self.refused, self.new_epochs = False, 0, 0
        self.truncated = 0
        self.happened = dict.fromkeys(("cut", "truncate", "stall", "refuse", "freeze", "kill", "term", "new_epoch"), 0)

    @property
    def programs(self):
        return [*self.readers.values(), *self.publishers.values()]

    def port(self, _):
        return self.server.port

    def command(self, library):
        return {
            "javascript": ["node", HERE / "programs/javascript.mjs"],
            "python": [sys.executable, HERE / "programs/python.py"],
            "rust": [self.rust],
        }[library]

    def write(self, name, text):
        """Replaces a file at once, so that nobody reads half of it."""
        draft = self.tokens / f".{name}"
        draft.write_text(text)
        draft.replace(self.tokens / name)

    def renew_tokens(self):
        for role in ("viewer", "worker"):
            self.write(role, wire.token(SECRET, SCHOOL, role, TOKEN_SECS))

    async def keep_tokens_fresh(self):
        while True:
            self.renew_tokens()
            await asyncio.sleep(FRESH_SECS)

    # The faults.

    def some(self):
        """Returns some of the programs, at least one."""
        return self.chance.sample(self.programs, self.chance.randint(1, len(self.programs)))

    async def cut(self):
        for program in self.some():
            program.link.cut()

    async def truncate(self):
        some = self.some()
        before = [program.link.down.truncated for program in some]
        for program in some:
            program.link.down.truncate(self.chance.uniform(0.05, 0.95))
        await asyncio.sleep(self.chance.uniform(0.2, 1))
        for program in some:
            program.link.heal()
        self.truncated += sum(program.link.down.truncated for program in some) - sum(before)

    async def stall(self):
        some = self.some()
        for program in some:
            program.link.hold(up=self.chance.random() < 0.5, down=True)
        await asyncio.sleep(self.chance.uniform(0.3, 3.5))
        for program in some:
            program.link.heal()

    async def refuse(self):
        some = self.some()
        for program in some:
            program.link.refuse()
        await asyncio.sleep(self.chance.uniform(0.2, 1.5))
        for program in some:
            program.link.heal()

    async def freeze(self):
        """Stops processes, so that they read slowly."""
        some = self.chance.sample(self.programs, self.chance.randint(1, 4))
        await asyncio.gather(*(program.freeze(self.chance.uniform(0.3, 3)) for program in some))

    async def kill(self):
        await self.server.kill(self.chance)

    async def term(self):
        await self.server.term(self.chance)

    async def new_epoch(self):
        """Makes all cursors invalid, as an administrator does after a restore. The log stays."""
        await self.server.terminate()
        process = await asyncio.create_subprocess_exec(
            self.server.binary, "new-epoch", "--yes", env=self.server.environment, cwd=self.folder, stdout=asyncio.subprocess.DEVNULL, stderr=self.server.log
        )
        if code := await process.wait():
            raise RuntimeError(f"`tidings new-epoch` ended with exit code {code}")
        self.new_epochs += 1
        await self.server.start()

    async def disturb(self, pause_secs, *faults):
        """Each fault once, whatever time it takes, then again in another order."""
        had_all = False
        while not (self.is_over and had_all):
            for fault in self.chance.sample(faults, len(faults)):
                await asyncio.sleep(self.chance.uniform(0.2, pause_secs))
                if self.is_over and had_all:
                    return
                await fault()
                self.happened[fault.__name__] += 1
            had_all = True

    # The run.

    async def carry_out(self):
        await self.server.start()
        self.write("server", f"http://127.0.0.1:{self.server.port}")
        self.renew_tokens()
        keeping = asyncio.create_task(self.keep_tokens_fresh())
        workers = [Background(self, self.answers, f"background{number}") for number in range(2)]
        steady = Worker(self, self.answers, "steady")
        working = [asyncio.create_task(worker.work()) for worker in workers] + [asyncio.create_task(steady.keep_steady())]
        self.tasks = [keeping, *working]
        commands = [{"op": "jobs.create", "job_id": f"old-{number}", "job_type": "old", "status": "in_progress"} for number in range(OLD_JOBS)]
        await steady.batch(commands)
        for (_, transport, scope, every_tick, secret), reader in zip(READERS, self.readers.values()):
            await reader.start("watch", transport, scope, "0" if every_tick else "100", *(["ticket"] if secret == "ticket" else []))
        for publisher in self.publishers.values():
            await publisher.start("publish", publisher.name)
        disturbing = [
            asyncio.create_task(self.disturb(1.5, self.cut, self.truncate, self.stall, self.refuse, self.freeze)),
            asyncio.create_task(self.disturb(4, self.kill, self.term, self.new_epoch)),
        ]
        finished = [asyncio.create_task(program.finished()) for program in self.programs]
        self.tasks += disturbing + finished
        await self.wait([*self.tasks], self.seconds, "", is_early=True)
        self.is_over = True
        await self.wait(disturbing, PATIENCE_SECS, "faults still happen")
        for program in self.programs:
            program.link.heal()
        await self.reset_the_rest()
        self.write("stop", "")
        await self.wait(working, PATIENCE_SECS, "workers still wait for an answer")
        publishers = finished[len(self.readers) :]
        await self.wait(publishers, PATIENCE_SECS, "publishers still wait for answers")
        await self.until_up_to_date()
        for path, body in [("", {"job_id": "the-end", "job_type": "end"}), ("/the-end/start", {}), ("/the-end/complete", {"result": "over"})]:
            await steady.publish("POST", f"/api/jobs{path}", body)
        await self.wait(finished, PATIENCE_SECS, "readers have not delivered the end")
        transcript = await self.transcript()
        await self.server.terminate()
        self.check_that_it_was_hard()
        return transcript

    async def reset_the_rest(self):
        """Begins another epoch if a reader had no cursor yet when the others began: on a slow machine, it may have started late."""
        rest = [reader for reader in self.readers.values() if not reader.has_had("reset")]
        deadline = time.monotonic() + PATIENCE_SECS
        while not all(reader.has_had("ready") for reader in rest):
            if time.monotonic() > deadline:
                raise Broken(f"a reader has had no `ready` after {PATIENCE_SECS} s")
            await asyncio.sleep(0.2)
        if rest:
            await self.new_epoch()

    def check_that_it_was_hard(self):
        """Fails if the run was too short to show anything."""
        easy = [name for name, times in self.happened.items() if not times]
        for name, program in (self.readers | self.publishers).items():
            if program.link.accepted < CONNECTIONS_MIN:
                easy.append(f"{name} connected {program.link.accepted} times")
            if "ticket" in name and sum(line["type"] == "ticket" for line in program.lines) < CONNECTIONS_MIN:
                easy.append(f"{name} renewed no ticket")
        for name, reader in self.readers.items():
            if not reader.has_had("reset"):
                easy.append(f"{name} had no reset")
        if not self.truncated:
            easy.append("nothing was truncated")
        if easy:
            raise RuntimeError(f"the run was too short: {', '.join(easy)}")

    async def wait(self, tasks, secs, failure, is_early=False):
        """Waits until all have ended. If one of them fails, so does this."""
        done, pending = await asyncio.wait(tasks, timeout=secs, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if pending and not is_early:
            behind = [program.name for program in self.programs if program.process.returncode is None]
            raise Broken(f"{failure} after {secs} s; what runs: {behind}")
        if done and is_early:
            raise Broken("a program has ended before the end")

    async def until_up_to_date(self):
        """Waits until each reader has delivered the newest state of each subject. A tick may be held back, so it need not precede `the-end`."""
        log = deliveries.Log(await self.whole_log())
        deadline = time.monotonic() + PATIENCE_SECS
        behind = list(self.readers)
        while behind:
            behind = [name for name in behind if not deliveries.is_up_to_date(name, self.record(name), log)]
            if behind and time.monotonic() > deadline:
                raise Broken(f"these readers have not delivered the newest states after {PATIENCE_SECS} s: {behind}")
            for name in behind:
                if self.readers[name].process.returncode is not None:
                    await self.readers[name].finished()
            await asyncio.sleep(0.2)

    def record(self, name):
        scope, every_tick = next((scope, every_tick) for own, (_, _, scope, every_tick, _) in zip(self.readers, READERS) if own == name)
        return {"scope": scope, "every_tick": every_tick, "lines": self.readers[name].lines}

    async def get(self, path):
        status, body = await wire.request(self.server.port, "GET", path, wire.token(SECRET, SCHOOL, "viewer"), headers={"Accept": "application/json"})
        if status != 200:
            raise Broken(f"GET {path}: {status} {body[:300]}")
        return json.loads(body)

    async def whole_log(self):
        """Reads the log from its beginning, every tick."""
        epoch = (await self.get("/api/jobs?limit=1"))["cursor"].partition("-")[0]
        cursor, found = f"{epoch}-0", []
        while True:
            answer = await self.get(f"/events/schools/{SCHOOL}?tick_ms=0&wait=0&cursor={cursor}")
            if answer["cursor"] == cursor:
                return found
            if any(message["type"] == "reset" for message in answer["messages"]):
                raise Broken("the log cannot be read from its beginning")
            found += [message for message in answer["messages"] if "seq" in message]
            cursor = answer["cursor"]

    async def states(self):
        """Returns what the server answers about jobs and devices."""
        found = {}
        for kind, id_field, fields in [("jobs", "job_id", ("status", "progress", "message", "attempt", "metadata", "result", "error")), ("devices", "device_id", ("status",))]:
            page = ""
            while page is not None:
                answer = await self.get(f"/api/{kind}?limit=500{page}")
                for state in answer[kind]:
                    found[f"{kind}/{state[id_field]}"] = {field: state[field] for field in fields if field in state}
                page = f"&page={answer['next']}" if answer["next"] else None
        return found

    async def transcript(self):
        return {
            "seed": self.seed,
            "new_epochs": self.new_epochs,
            "log": await self.whole_log(),
            "states": await self.states(),
            "acknowledged": self.answers.cursors,
            "readers": {name: self.record(name) for name in self.readers},
            "publishers": {name: publisher.lines for name, publisher in self.publishers.items()},
        }

    def figures(self):
        return {"seed": self.seed, "seconds": self.seconds, "starts": self.server.starts, "faults": self.happened, "truncated": self.truncated, "connections": sum(program.link.accepted for program in self.programs if program.link)}

    def evidence(self):
        """Returns what the programs printed, by the name of a file."""
        return [(f"{program.name}.lines", map(json.dumps, program.lines)) for program in self.programs]

    async def close(self):
        await end(self.tasks)
        for program in self.programs:
            await program.close()
        await self.server.close()


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the server")
    parser.add_argument("--rust", required=True, help="the example chaos-client")
    parser.add_argument("--seconds", type=float, default=20, help="how long faults happen")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--transcript", type=Path)
    parser.add_argument("--plant", choices=deliveries.PLANTS)
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    folder = tempfile.mkdtemp(prefix="tidings-chaos-clients-")
    run = Run(options, folder)
    print(f"chaos of the clients: seed {options.seed}, in {folder}", flush=True)

    async def carry_out():
        transcript = await run.carry_out()
        if options.transcript:
            options.transcript.write_text(json.dumps(transcript))
        if options.plant:
            deliveries.spoil(transcript, options.plant, options.seed)
        return deliveries.check(transcript)

    return await outcome(run, folder, carry_out)


sys.exit(asyncio.run(main()))
