"""A process that has imported the workers' libraries, and forks a worker for each request of `fork_client`.

It inherits a listening socket. It ends when its standard input, a pipe from its parent process, is closed.
"""

import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import psutil

from ortho_core.generators.imports import quick_imports
from rayjobs.processes.leaving import leave

#: Seconds that a client has to send its request.
REQUEST_S = 5.0


@dataclass(frozen=True)
class ForkRequest:
    """The process that is requested: what `fork_client.asked` sends."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    niceness: int
    blocked: list[int]
    streams: list[int]

    @classmethod
    def received(cls, client: socket.socket) -> "ForkRequest":
        """Read a request from a socket. Raises OSError, ValueError or TypeError if it is not complete."""
        head, streams, _, _ = socket.recv_fds(client, 8, 3)
        try:
            if len(head) != 8 or len(streams) != 3:
                raise ValueError("a request without its streams")
            length, message = int.from_bytes(head, "big"), b""
            while len(message) < length:
                if not (more := client.recv(length - len(message))):
                    raise ValueError("a request without its end")
                message += more
            return cls(**json.loads(message), streams=list(streams))
        except BaseException:
            for stream in streams:
                os.close(stream)
            raise

    def close(self) -> None:
        for stream in self.streams:
            os.close(stream)

    def become(self, inherited: Mapping[str, str]) -> NoReturn:
        """Turn this process into the requested one, and run its program to the end.

        The server's imports used the module paths of the environment `inherited`. If the request has other module paths, this
        process starts a new Python instead.
        """
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
        self.close()
        os.setpgid(0, 0)  # Ray ends a worker with its process group
        os.chdir(self.folder)
        os.nice(max(0, self.niceness - os.nice(0)))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked)
        os.environ.clear()
        os.environ.update(self.environment)
        np.random.seed()  # a fork has the server's state of this generator; others get new seeds in a fork
        if any(self.environment.get(name) != inherited.get(name) for name in ("PYTHONPATH", "PYTHONHOME")):
            os.execv(sys.executable, [sys.executable, *self.command])
        sys.argv[:] = self.command
        sys.path.insert(0, os.path.dirname(self.command[0]))
        code: object = None
        try:
            runpy.run_path(self.command[0], run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
        leave(code)


def preload() -> None:
    """Import what workers need for most models. The remaining imports of a worker take hundredths of a second."""
    with quick_imports():
        from diffusers import (  # noqa: F401
            AutoencoderKL,
            EulerAncestralDiscreteScheduler,
            StableDiffusionXLPipeline,
            UNet2DConditionModel,
        )

        import ortho_core.evaluation.rows
        import ortho_core.generators.diffusers_pipelines
        import ortho_core.mstep.update
        import ortho_core.rewards.objective  # noqa: F401


def is_ours(client: socket.socket) -> bool:
    """Whether the client is a process of the same user. The address has no file, so no file permissions protect it."""
    peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", peer)[1] == os.getuid()


def serve(listening: socket.socket, lifeline: int) -> ForkRequest | None:
    """Fork for each request. Returns the request in the fork, and None in the server when `lifeline` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the forks, and none stays as a zombie
    while True:
        ready, _, _ = select.select([listening.fileno(), lifeline], [], [])
        if lifeline in ready:  # the parent process is gone, and so is its Ray
            for fork in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    fork.kill()
            return None
        with suppress(OSError, ValueError, TypeError), listening.accept()[0] as client:
            client.settimeout(REQUEST_S)
            if not is_ours(client):
                continue
            request = ForkRequest.received(client)
            try:
                # Sent before the fork: a client that no longer waits has become Python itself, and must not run twice.
                client.sendall(b"1")
                forked = os.fork() == 0
            except OSError:
                request.close()
                raise
            if forked:
                listening.close()
                return request
            request.close()


def main(listening: int) -> None:
    """Serve on the listening socket with this file descriptor."""
    inherited = dict(os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides when the server ends
    preload()
    if (request := serve(socket.socket(fileno=listening), sys.stdin.fileno())) is not None:
        request.become(inherited)
