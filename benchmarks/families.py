"""A command with all processes that it starts, for programs that disturb it: live processes and remnants."""

import getpass
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

#: Files that Ray and PyTorch keep in a temporary folder for the next run.
CACHES = ("ray", f"torchinductor_{getpass.getuser()}")


class Family:
    """`ortho COMMAND`, started in a new session with its own temporary folder; the output is in a file."""

    def __init__(self, command: list[str], temporary: Path, log: Path) -> None:
        temporary.mkdir(exist_ok=True)
        self.temporary, self.log = temporary, log
        environment = os.environ | {"TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rayjobs", *command],
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env=environment,
            )
        self.started = time.monotonic()
        #: All descendants seen so far, including those whose parent has ended.
        self.members: dict[int, psutil.Process] = {}

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def watch(self, until: float) -> bool:
        """Record the processes that it starts, until `seconds` after its start; returns whether it still runs."""
        while self.process.poll() is None and self.seconds < until:
            self.meet()
            time.sleep(0.05)
        self.meet()
        return self.process.poll() is None

    def meet(self) -> None:
        try:
            self.members |= {p.pid: p for p in psutil.Process(self.process.pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            return

    def tell(self, number: int, group: bool) -> None:
        """Send a signal to the process, or to its process group, as a terminal does."""
        if self.process.poll() is None:
            (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, seconds: float) -> int | None:
        """Wait for its exit code; None if it did not end in time and was killed."""
        if self.watch(self.seconds + seconds):
            self.process.kill()
            self.process.wait()
            return None
        return self.process.returncode

    def alive(self) -> list[psutil.Process]:
        """Its descendants that still run."""
        return [p for p in self.members.values() if p.pid != self.process.pid and _alive(p)]

    def left(self, seconds: float) -> list[str]:
        """What is left after at most `seconds`: processes, which are then killed, and files in its temporary folder."""
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.2)
        left = [f"process {name_of(p)}" for p in self.alive()]
        for one in self.alive():
            one.kill()
        return left + [f"tmp/{name}" for name in os.listdir(self.temporary) if name not in CACHES]

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").strip().splitlines() or [""]


def name_of(process: psutil.Process) -> str:
    """The start of a process's command line; Ray's workers set it to their task."""
    try:
        return " ".join(process.cmdline())[:80] or process.name()
    except psutil.NoSuchProcess:
        return "gone"


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a short path, since Ray's sockets are below it."""
    with tempfile.TemporaryDirectory(prefix="i", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


#: The signals that ask a process to end, each with whether it is sent to the process group.
TOLD = ((signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False))
