"""The server under test, and the faults that it is exposed to."""

import asyncio
import errno
import os
import shutil
import signal
import struct
import subprocess
import uuid
from pathlib import Path

from ledger import Broken
from ports import reserved_port

SECRET = "a secret for chaos only, long enough for HS256"
# A server that takes longer than this counts as hung.
START_SECS, END_SECS = 60, 30
HOUR, DAY = 3_600, 86_400


def fill(ballast, left):
    """Grows this file until the given number of pages is left on its disk. Others write at the same time, so there may be less space than
    the system just reported."""
    with open(ballast, "wb") as file:
        while True:
            room = os.statvfs(ballast)
            pages = room.f_bavail - left
            if pages <= 0:
                return
            try:
                return os.posix_fallocate(file.fileno(), 0, pages * room.f_bsize)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


class Server:
    """A server process that is killed, stopped, frozen and cut off from its disk, always on the same port and folder."""

    def __init__(self, binary, folder, faults, settings=None):
        # The server runs in its own folder.
        self.binary, self.folder, self.port, self.process = Path(binary).resolve(), Path(folder), reserved_port(), None
        self.data, self.disk, self.clock = self.folder / "data", self.folder / "disk", self.folder / "clock"
        self.starts, self.faults, self.preload, self.mounted = 0, faults, [], False
        self.power_losses = 0
        self.data.mkdir()
        self.log = open(self.folder / "log", "ab")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS_", "ROCKET_"))}
        self.environment |= {
            "TIDINGS_DATA_DIR": str(self.data),
            "TIDINGS_JWT_SECRET": SECRET,
            "TIDINGS_HEARTBEAT_SECS": "1",
            "TIDINGS_STALL_AFTER_SECS": "0",
            "TIDINGS_TIMEOUT_SECS": "0",
            "TIDINGS_DEVICE_LEASE_SECS": "86400",
            "TIDINGS_MAILBOX_CAPACITY": "32",
            "TIDINGS_WINDOW_EVENTS": "64",
            "TIDINGS_RECONNECT_SPREAD_MS": "0",
            "ROCKET_SHUTDOWN": "{grace=2,mercy=1}",
        }
        if "power" in faults:
            self._preload("powerloss")
            self.disk.mkdir()
            self.boot = self.folder / "boot_id"
            self.boot.write_text(f"{uuid.uuid4()}\n")
            self.environment |= {"POWERLOSS_FOLDER": str(self.data), "POWERLOSS_DISK": str(self.disk), "POWERLOSS_BOOT_ID": str(self.boot)}
        if "clock" in faults:
            self._preload("clock")
            self.clock.write_bytes(bytes(8))
            self.environment["CLOCK_FILE"] = str(self.clock)
        if "disk" in faults:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g", "tidings-chaos", str(self.data)], check=True)
            self.mounted = True
        self.environment["LD_PRELOAD"] = ":".join(self.preload)
        self.environment |= settings or {}

    def _preload(self, name):
        library = self.folder / f"{name}.so"
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl", "-lpthread"], check=True)
        self.preload.append(str(library))

    def set_clock(self, offset_secs):
        """Overwrites the file in place, because the server has mapped it."""
        with open(self.clock, "r+b") as file:
            file.write(struct.pack("=q", offset_secs))

    async def start(self):
        self.starts += 1
        self.process = await asyncio.create_subprocess_exec(
            self.binary,
            "serve",
            env=self.environment | {"ROCKET_PORT": str(self.port)},
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=self.log,
        )
        try:
            line = (await asyncio.wait_for(self.process.stdout.readline(), START_SECS)).decode()
        except asyncio.TimeoutError:
            failure = self._broken(f"it does not listen within {START_SECS} s of start {self.starts}")
            # Otherwise it could still take the port, and could not be started again.
            await self.end()
            raise failure from None
        if "listens on" not in line:
            code = await self.process.wait()
            raise self._broken(f"start {self.starts} ended with exit code {code}")

    async def end(self, how=signal.SIGKILL):
        self._check_that_it_runs()
        self.process.send_signal(how)
        try:
            return await asyncio.wait_for(self.process.wait(), END_SECS)
        except asyncio.TimeoutError:
            raise self._broken(f"it still runs {END_SECS} s after {how.name}") from None

    def _check_that_it_runs(self):
        if self.process.returncode is not None:
            raise self._broken(f"it ended by itself with exit code {self.process.returncode}")

    def _broken(self, what):
        """Returns the failure of the server, with the end of its log."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()[-5:]
        return Broken("\n  ".join([f"the server, process {self.process.pid}: {what}; its log ends with", *lines]))

    async def kill(self, _):
        await self.end()
        await self.start()

    async def term(self, _):
        await self.terminate()
        await self.start()

    async def terminate(self):
        code = await self.end(signal.SIGTERM)
        if code != 0:
            raise self._broken(f"SIGTERM ended it with exit code {code}")

    async def freeze(self, chance):
        await self.freeze_for(chance.uniform(0.2, 4))

    async def freeze_for(self, secs):
        self._check_that_it_runs()
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(secs)
        self.process.send_signal(signal.SIGCONT)

    async def power(self, _):
        """Simulates a power loss: only synced data survives."""
        await self.end()
        self.power_losses += 1
        for file in self.data.iterdir():
            file.unlink()
        for file in self.disk.iterdir():
            shutil.copy2(file, self.data / file.name)
        self.boot.write_text(f"{uuid.uuid4()}\n")
        await self.start()

    async def disk_full(self, chance):
        ballast = self.data / "ballast"
        # Leave some pages, so that the disk becomes full during a write.
        fill(ballast, chance.randint(0, 64))
        await asyncio.sleep(chance.uniform(0.2, 3))
        ballast.unlink()

    async def clock_step(self, chance):
        self.set_clock(chance.choice([0, HOUR, -HOUR, 2 * DAY, 9 * DAY, -2 * DAY, -300, 3, -3]))

    def fault(self, name):
        return {"kill": self.kill, "term": self.term, "freeze": self.freeze, "power": self.power, "disk": self.disk_full, "clock": self.clock_step}[name]

    async def close(self):
        if self.process and self.process.returncode is None:
            try:
                self.process.send_signal(signal.SIGCONT)
                await self.end()
            except ProcessLookupError:
                pass
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.data)], check=False)
