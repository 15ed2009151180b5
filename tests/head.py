"""A real cluster of one machine, started by the scripts in cluster/local; the tests that hand jobs to it share this."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.conftest import ROOT

LOCAL = ROOT / "cluster" / "local"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, none twice, outside the range that Ray gives to its workers."""
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            listener = stack.enter_context(socket.socket())
            listener.bind(("", 0))
            if not 10002 <= (port := listener.getsockname()[1]) <= 19999:
                ports.append(port)
        return ports


@contextmanager
def short_folder() -> Iterator[Path]:
    """An empty folder whose path is as short as Ray's sockets want it."""
    with tempfile.TemporaryDirectory(prefix="n", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def node_environment(folder: Path, ports: dict[str, int]) -> dict[str, str]:
    """Of a node: home, token and session folders of its own, this Python first on the path, nothing of another Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"HOME": str(folder), "RAY_TMPDIR": str(folder), "PATH": path, "RAY_DISABLE_MEMORY_MONITOR": "1"}
    return {**kept, **own, **{name: str(port) for name, port in ports.items()}}


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node in the foreground of a session of its own; afterwards it and all that it started are gone."""
    with log.open("wb") as stream:
        node = subprocess.Popen(command, env=env, stdout=stream, stderr=stream, start_new_session=True)
    try:
        yield node
    finally:
        below = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        node.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(node.pid), *below] if below else [], timeout=5)
        for process in alive:
            process.kill()
        node.wait()


class Head:
    """A running head: where it listens, and how to talk to it."""

    def __init__(self, folder: Path, address: str, metrics: int, env: dict[str, str]) -> None:
        self.folder, self.address, self.metrics_port, self.env = folder, address, metrics, env

    @property
    def token(self) -> Path:
        return self.folder / ".ray" / "auth_token"

    def client(self, token: bool = True) -> dict[str, str]:
        """The environment of a command that submits, with or without the token."""
        env = {name: value for name, value in self.env.items() if not name.startswith("RAY_AUTH")}
        env |= {"HOME": str(self.folder / "elsewhere"), "RAY_API_SERVER_ADDRESS": self.address}
        return {**env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)} if token else env

    @staticmethod
    def command(*words: str) -> list[str]:
        """A command line with the program of this Python's environment."""
        return [str(Path(sys.executable).parent / words[0]), *words[1:]]

    def run(self, *command: str, token: bool = True, **options) -> subprocess.CompletedProcess[str]:
        """A command line in this Python's environment, with the repository as its folder unless told otherwise."""
        settings = {"cwd": ROOT, "env": self.client(token), "text": True, "capture_output": True, "timeout": 300}
        return subprocess.run(self.command(*command), check=False, **{**settings, **options})

    def wait(self, seconds: float = 60) -> None:
        """Until the job API answers, be it with a refusal."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.address}/api/version", timeout=5)
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError((self.folder / "head.log").read_text())


@contextmanager
def one_machine(folder: Path, cpus: int) -> Iterator[Head]:
    """A head as `cluster/local/head.sh` starts it."""
    names = ("HEAD_PORT", "DASHBOARD_PORT", "METRICS_PORT", "AGENT_PORT", "CLIENT_PORT")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    env = node_environment(folder, ports)
    head = Head(folder, f"http://127.0.0.1:{ports['DASHBOARD_PORT']}", ports["METRICS_PORT"], env)
    command = ["bash", str(LOCAL / "head.sh"), "--num-cpus", str(cpus), "--object-store-memory", "200000000"]
    with running(command, env, folder / "head.log"):
        head.wait()
        yield head
