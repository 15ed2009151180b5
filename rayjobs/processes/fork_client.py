"""The program that Ray starts as a worker's Python. It asks the fork server for a process; if none answers, it becomes Python.

Run as a script, without the packages of this environment: `python -I -S fork_client.py ADDRESS FILE ARGUMENT ...`.
"""

import json
import os
import signal
import socket
import sys

#: Seconds to wait for the server's answer: the server may still be importing.
FORK_ANSWER_S = 40.0


def asked(address: str, command: list[str]) -> bool:
    """Whether the server at `address` has forked a process that runs `command`, a Python file and its arguments.

    The fork gets the environment, folder, priority, blocked signals and standard streams of this process.
    """
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.nice(0),
        "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }
    message = json.dumps(request).encode()
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(FORK_ANSWER_S)
            server.connect("\0" + address)
            socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(message)
            try:
                answer = server.recv(1)
            except TimeoutError:
                # After the shutdown the server cannot answer, and so does not fork. An answer from before may still be read.
                server.shutdown(socket.SHUT_RDWR)
                answer = server.recv(1)
            return answer == b"1"
    except OSError:
        return False


if __name__ == "__main__":
    address, *command = sys.argv[1:]
    if not asked(address, command):
        os.execv(sys.executable, [sys.executable, *command])
