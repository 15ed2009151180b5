"""Workers of this machine's Ray as forks of one process that has imported their libraries."""

import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path

import psutil

from rayjobs.processes import fork_client

#: What an accelerator's driver makes. A process that has looked for one can hand it to no fork, and libraries look on import.
ACCELERATORS = ("/dev/nvidia*", "/dev/kfd", "/dev/accel*")
#: Modules are looked for where this process looks for them.
PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rayjobs.processes.fork_server import main
main(int(sys.argv[2]))"""
#: As Ray has a worker compute until it says otherwise, which needs no second thread where forks begin.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def forking_is_sound() -> bool:
    """On Linux, without an accelerator."""
    return sys.platform == "linux" and not any(glob(each) for each in ACCELERATORS)


def listens(listening: socket.socket, address: str) -> bool:
    """At an address without a file, which nobody has to take away; a system that has none such has no forks."""
    try:
        listening.bind("\0" + address)
        listening.listen(128)
    except OSError:
        return False
    return True


def end_with_forks(server: psutil.Process) -> None:
    """Kill a server, and those of its forks that did not end with Ray: one that has yet to join it is unknown to Ray."""
    with suppress(psutil.NoSuchProcess):
        server.suspend()  # it forks no more
        for process in [*server.children(), server]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def fork_server() -> Iterator[dict[str, str]]:
    """A fork server for as long as the block runs, and the runtime environment in which Ray's workers are its forks.

    Empty where forking is not sound. Ray starts a worker in a fifth of a second of processor time by it, instead of importing
    PyTorch and diffusers for seconds, and workers share the memory of what was imported.
    """
    address = f"ortho-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX) as listening:
        if not (forking_is_sound() and listens(listening, address)):
            yield {}
            return
        server = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # where it cannot import, workers begin by themselves, and say why
            stderr=subprocess.DEVNULL,
            process_group=0,
            env=os.environ | ONE_THREAD,
        )
    command = [sys.executable, "-I", "-S", str(Path(fork_client.__file__).resolve()), address]
    try:
        yield {"py_executable": shlex.join(command)}
    finally:
        end_with_forks(psutil.Process(server.pid))
        server.communicate()
