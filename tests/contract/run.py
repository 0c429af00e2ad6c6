"""The contract, tested from outside: the documents of a real server are free of lint and valid, the server keeps to them
for a caller of each role, and the types of the JavaScript client agree with them.

Usage: run.py <program> <folder of node_modules> <schemathesis>
"""

import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
SECRET = "a secret for tests that is long enough for HS256"
# Each role has its own server and runs at the same time.
ROLES = ["none", "viewer", "worker", "admin"]
# Every limit of every parameter and body is tried by the role that most calls are for. Those that can create subjects also follow them
# from call to call.
PHASES = {
    "none": "examples,fuzzing",
    "viewer": "examples,fuzzing",
    "worker": "examples,coverage,stateful",
    "admin": "examples,fuzzing,stateful",
}
# Each stream has the handler and the parameters of that of jobs, and each of them very many limits.
COVERED = "^/(monitor|ws|progress|events(?!/jobs$))"
EXAMPLES = os.environ.get("CONTRACT_EXAMPLES", "3")


def token(role: str) -> str:
    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = {"sub": "contract", "school_id": 1, "role": role, "exp": int(time.time()) + 3600}
    body = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).digest()
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


class Server:
    """A server of its own, in a folder of its own."""

    def __init__(self, program: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="tidings-contract-")
        environment = {
            "PATH": os.environ["PATH"],
            "ROCKET_PORT": "0",
            "TIDINGS_DATA_DIR": self.folder.name,
            "TIDINGS_JWT_SECRET": SECRET,
        }
        self.log = open(Path(self.folder.name) / "log", "w+b")
        self.process = subprocess.Popen(
            [program, "serve"], cwd=self.folder.name, env=environment, stdout=self.log, stderr=self.log
        )
        self.url = self.listening()

    def output(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    def listening(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"http://(?:127\.0\.0\.1|0\.0\.0\.0|localhost):(\d+)", self.output())
            if found:
                return f"http://127.0.0.1:{found.group(1)}"
            time.sleep(0.05)
        raise SystemExit(f"the server does not listen:\n{self.output()}")

    def call(self, method: str, path: str, body: object = None, role: str = "admin") -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token(role)}"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()


def run(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}")


def fuzz(schemathesis: str, server: Server, role: str) -> subprocess.Popen:
    """Starts calls with generated parameters and bodies, valid and invalid."""
    command = [
        schemathesis, "--config-file", str(HERE / "schemathesis.toml"),
        "run", f"{server.url}/openapi.json",
        "--max-examples", EXAMPLES, "--seed", "1", "--workers", "1",
        # Server-Sent Events do not end, so streams are long polls here.
        "--header", "Accept: application/json", "--request-timeout", "10",
        "--phases", PHASES[role], "--no-color",
    ]
    if "coverage" in PHASES[role]:
        command += ["--exclude-path-regex", COVERED]
    if role != "none":
        command += ["--header", f"Authorization: Bearer {token(role)}"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py")}
    return subprocess.Popen(
        command, cwd=server.folder.name, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def seed(server: Server) -> None:
    """Creates the subjects that `schemathesis.toml` names."""
    server.call("POST", "/api/jobs", {"job_id": "42", "job_type": "document", "status": "in_progress"})
    server.call("POST", "/api/enrollments", {"session_id": "42"})
    server.call("PUT", "/api/devices/42", {"name": "Door"})
    server.call("PUT", "/api/characteristics/42", {"name": "Diameter"})
    server.call("POST", "/api/characteristics/42/violations", {"rule_id": 1, "violation_id": "42"})


def main(program: str, node: str, schemathesis: str) -> None:
    servers = {role: Server(program) for role in ROLES}
    running = {}
    try:
        for role, server in servers.items():
            seed(server)
            running[role] = fuzz(schemathesis, server, role)
        documents = Path(servers["none"].folder.name)
        for name in ["openapi.json", "asyncapi.json"]:
            (documents / name).write_bytes(servers["none"].call("GET", f"/{name}"))
        # The exceptions are for a document in the same folder.
        for name in ["redocly.yaml", ".redocly.lint-ignore.yaml"]:
            shutil.copy(HERE / name, documents)
        run(f"{node}/.bin/redocly", "lint", "openapi.json", folder=documents)
        run("node", str(HERE / "asyncapi.mjs"), node, str(documents / "asyncapi.json"))
        run("node", str(HERE / "types.mjs"), node, str(documents / "asyncapi.json"))
        failed = []
        for role, process in running.items():
            output, _ = process.communicate()
            print(f"-- {role}: {output.strip().splitlines()[-1]}")
            if process.returncode != 0:
                failed.append(f"== as {role}\n{output}")
        for role, server in servers.items():
            if server.process.poll() is not None:
                failed.append(f"the server for {role} has ended:\n{server.output()}")
        if failed:
            raise SystemExit("\n".join(failed))
    finally:
        for process in running.values():
            process.kill()
        for server in servers.values():
            server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
