"""The real programs around the nodes: PostgreSQL with a standby, Redis, PgBouncer. Each runs in a folder of its own, and as an ordinary
user where it refuses to run as root."""

import asyncio
import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from ledger import Broken
from ports import reserved_port

# A program that takes longer than this to start or to end counts as hung. PostgreSQL has taken a minute to end a process of replication.
PATIENCE_SECS = 150
USER = "tidings"
DATABASE = "tidings"


def found(program, *places):
    """Returns the path of a program."""
    for place in [shutil.which(program), *(found for pattern in places for found in sorted(glob.glob(pattern), reverse=True))]:
        if place and os.path.exists(place):
            return place
    sys.exit(f"{program} is required and not installed")


def postgres_program(name):
    bin = os.environ.get("POSTGRES_BIN")
    # By version, not by text: 9.6 is older than 15.
    versions = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(path.split("/")[4]), reverse=True)
    return os.path.join(bin, name) if bin else found(name, *(os.path.join(version, name) for version in versions))


class Part:
    """A program that listens on a port of its own."""

    def __init__(self, folder, name, signal=signal.SIGKILL):
        self.folder, self.name, self.signal = Path(folder) / name, name, signal
        self.port, self.process, self.is_frozen = reserved_port(), None, False
        self.folder.mkdir()
        self.user = None
        if os.geteuid() == 0:
            self.user = next(user for user in ("postgres", "nobody") if self._exists(user))
            shutil.chown(self.folder, self.user)

    @staticmethod
    def _exists(user):
        try:
            return pwd.getpwnam(user)
        except KeyError:
            return None

    def as_user(self):
        if self.user is None:
            return {}
        entry = pwd.getpwnam(self.user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def run(self, *command):
        """Runs a command until it ends."""
        output = subprocess.run(command, cwd=self.folder, capture_output=True, timeout=PATIENCE_SECS, check=False, **self.as_user())
        if output.returncode:
            raise RuntimeError(f"{command}: {output.stderr.decode()}")
        return output.stdout.decode()

    async def start(self):
        with open(self.folder / "log", "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.as_user()
            )
        for _ in range(PATIENCE_SECS * 50):
            if self.process.returncode is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {(self.folder / 'log').read_text()[-1000:]}")
            if await asyncio.to_thread(self.responds):
                return self
            await asyncio.sleep(0.02)
        raise RuntimeError(f"{self.name} does not respond")

    def responds(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        except OSError:
            return False

    async def end(self, how=None):
        if self.process is None or self.process.returncode is not None:
            return
        self.thaw()
        self.process.send_signal(how or self.signal)
        await asyncio.wait_for(self.process.wait(), PATIENCE_SECS)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self):
        if self.is_frozen:
            self.process.send_signal(signal.SIGCONT)
            self.is_frozen = False


class Postgres(Part):
    """A PostgreSQL server, which may be a standby. What it has committed survives it. Commits that do not wait for the disk are lost if
    its WAL writer is frozen and no later commit has waited."""

    SETTINGS = {
        # Processes are killed here, machines are not: what was written survives.
        "fsync": "off",
        "full_page_writes": "off",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "300",
        "max_wal_senders": "10",
        "wal_keep_size": "256MB",
        "shared_buffers": "64MB",
        "log_min_messages": "warning",
        "wal_retrieve_retry_interval": "100ms",
        "timezone": "Asia/Kathmandu",
    }

    def __init__(self, folder, name):
        super().__init__(folder, name, signal.SIGQUIT)
        self.data = self.folder / "data"
        self.frozen_writer = None

    async def create(self):
        await asyncio.to_thread(
            self.run, postgres_program("initdb"), "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=trust", f"--username={USER}",
            "-D", str(self.data),
        )
        await self.start()
        self.query(f"CREATE DATABASE {DATABASE}", "postgres")
        return self

    async def standby_of(self, port):
        """Copies the server at this port, and follows it from then on."""
        await asyncio.to_thread(
            self.run, postgres_program("pg_basebackup"), "--no-sync", "-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-p", str(port),
            "-U", USER, "-D", str(self.data),
        )
        return await self.start()

    def command(self):
        settings = [part for name, value in self.SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return [postgres_program("postgres"), "-D", str(self.data), "-p", str(self.port), *settings]

    def responds(self):
        # A server that is recovering accepts connections and rejects them.
        try:
            return self.query("SELECT 1", "postgres") == "1"
        except (RuntimeError, subprocess.TimeoutExpired):
            return False

    def query(self, sql, database=DATABASE):
        return self._client("psql", database, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql).strip()

    def freeze_wal_writer(self):
        """From now on, only what a commit waits for is written. A killed process loses the rest, like a machine that loses power."""
        state = "SELECT pid, wait_event FROM pg_stat_activity WHERE backend_type = 'walwriter'"
        while True:
            pid = int(self.query(state, "postgres").partition("|")[0])
            os.kill(pid, signal.SIGSTOP)
            if self.query(state, "postgres") == f"{pid}|WalWriterMain":
                self.frozen_writer = pid
                return
            # It may hold a lock for which every commit waits.
            os.kill(pid, signal.SIGCONT)

    async def end(self, how=None):
        if self.frozen_writer is not None:
            self.process.send_signal(self.signal)
            os.kill(self.frozen_writer, signal.SIGKILL)
            self.frozen_writer = None
        await super().end(how)

    def _client(self, program, database, *arguments):
        return self.run(postgres_program(program), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, *arguments, database)

    def rows(self, sql):
        """Returns the rows of a query whose only column is JSON."""
        return [json.loads(line) for line in self.query(sql).splitlines()]

    async def promote(self):
        await asyncio.to_thread(self.run, postgres_program("pg_ctl"), "promote", "-D", str(self.data), "-w")
        if self.query("SELECT pg_is_in_recovery()", "postgres") != "f":
            raise Broken(f"{self.name} was not promoted")


class Redis(Part):
    """A Redis server without persistence."""

    def command(self):
        program = os.environ.get("REDIS_SERVER") or found("redis-server", "/usr/bin/valkey-server")
        return [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]


class PgBouncer(Part):
    """PgBouncer in transaction mode, in front of a port."""

    def __init__(self, folder, name, upstream):
        super().__init__(folder, name)
        (self.folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={upstream} user={USER}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\nserver_reset_query_always = 1\nmax_client_conn = 1000\ndefault_pool_size = 20\nserver_login_retry = 1\nserver_connect_timeout = 3\n"
        )

    def command(self):
        return [found("pgbouncer", "/usr/sbin/pgbouncer"), "pgbouncer.ini"]
