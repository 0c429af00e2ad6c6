"""The server under test, and what can happen to it."""

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

from ledger import Broken

SECRET = "a secret for chaos only, long enough for HS256"


class Server:
    """A server process that is killed, stopped, frozen and cut off from its disk, always on the same port and folder."""

    def __init__(self, binary, folder, faults):
        # It runs in its own folder.
        self.binary, self.folder, self.port, self.process = Path(binary).resolve(), Path(folder), 0, None
        self.data, self.disk, self.clock = self.folder / "data", self.folder / "disk", self.folder / "clock"
        self.starts, self.faults, self.preload, self.mounted = 0, faults, [], False
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
            self._preload_power_loss()
        if "clock" in faults:
            self._preload_clock()
        if "disk" in faults:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g", "tidings-chaos", str(self.data)], check=True)
            self.mounted = True
        self.environment["LD_PRELOAD"] = ":".join(self.preload)

    def _preload_power_loss(self):
        library = self.folder / "powerloss.so"
        source = Path(__file__).with_name("powerloss.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl", "-lpthread"], check=True)
        self.disk.mkdir()
        self.boot = self.folder / "boot_id"
        self.boot.write_text(f"{uuid.uuid4()}\n")
        self.preload.append(str(library))
        self.environment |= {"POWERLOSS_FOLDER": str(self.data), "POWERLOSS_DISK": str(self.disk), "POWERLOSS_BOOT_ID": str(self.boot)}

    def _preload_clock(self):
        found = subprocess.run(["find", "/usr/lib", "/lib", "-name", "libfaketime.so.1"], capture_output=True, text=True).stdout.split()
        if not found:
            raise SystemExit("the fault `clock` needs libfaketime (Debian: faketime)")
        self.preload.append(found[0])
        self.set_clock("+0")
        self.environment |= {"FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}

    def set_clock(self, offset):
        following = self.clock.with_suffix(".next")
        following.write_text(offset)
        following.rename(self.clock)

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
        line = (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode()
        if "listens on" not in line:
            raise Broken(f"the server did not start: see {self.folder / 'log'}")
        self.port = int(line.rsplit(":", 1)[1])

    async def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        return await asyncio.wait_for(self.process.wait(), 30)

    async def kill(self, _):
        await self.end()
        await self.start()

    async def term(self, _):
        code = await self.end(signal.SIGTERM)
        if code != 0:
            raise Broken(f"SIGTERM: exit code {code}, see {self.folder / 'log'}")
        await self.start()

    async def freeze(self, chance):
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.2, 4))
        self.process.send_signal(signal.SIGCONT)

    async def power(self, _):
        """Only what was synced is there after this."""
        await self.end()
        for file in self.data.iterdir():
            file.unlink()
        for file in self.disk.iterdir():
            shutil.copy2(file, self.data / file.name)
        self.boot.write_text(f"{uuid.uuid4()}\n")
        await self.start()

    async def disk_full(self, chance):
        ballast = self.data / "ballast"
        room = os.statvfs(self.data)
        with open(ballast, "wb") as file:
            # Some pages are left, so that it gets full amid a write.
            os.posix_fallocate(file.fileno(), 0, max(1, (room.f_bavail - chance.randint(0, 64)) * room.f_bsize))
        await asyncio.sleep(chance.uniform(0.2, 3))
        ballast.unlink()

    async def clock_step(self, chance):
        self.set_clock(chance.choice(["+0", "+1h", "-1h", "+2d", "+9d", "-2d", "-5m", "+3s", "-3s"]))

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
