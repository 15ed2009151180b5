"""Start the workers of a local Ray as forks of one process that has imported their libraries."""

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

#: Device files of accelerators. Libraries initialise an accelerator on import, and a fork cannot use it after that.
ACCELERATORS = ("/dev/nvidia*", "/dev/kfd", "/dev/accel*")
#: The server's program; it gets the module paths of this process.
PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rayjobs.processes.fork_server import main
main(int(sys.argv[2]))"""
#: Ray's default for workers. It also keeps the server from starting threads, which forks do not inherit.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def forking_is_sound() -> bool:
    """Whether workers can be forks: on Linux, without an accelerator."""
    return sys.platform == "linux" and not any(glob(each) for each in ACCELERATORS)


def listens(listening: socket.socket, address: str) -> bool:
    """Listen at an abstract address, which needs no file and no clean-up. False if the system has no such addresses."""
    try:
        listening.bind("\0" + address)
        listening.listen(128)
    except OSError:
        return False
    return True


def end_with_forks(server: psutil.Process) -> None:
    """Kill a server and its forks that did not end with Ray: Ray does not know a fork that has not joined it yet."""
    with suppress(psutil.NoSuchProcess):
        server.suspend()  # so that it does not fork any more
        for process in [*server.children(), server]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def fork_server() -> Iterator[dict[str, str]]:
    """Run a fork server during the block; yields the runtime environment that makes Ray's workers its forks.

    The environment is empty if workers cannot be forks. With forks, a worker starts in 0.2 s of processor time instead of
    the seconds that importing PyTorch and diffusers takes, and workers share the memory of the imported modules.
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
            stdout=subprocess.DEVNULL,  # if its imports fail, workers start without it and report the error
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
