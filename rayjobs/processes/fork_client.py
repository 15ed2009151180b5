"""What Ray starts as the Python of a worker: asks the fork server for the process, and is Python itself where none answers.

Run as a script, without the packages of this environment: `python -I -S fork_client.py ADDRESS FILE ARGUMENT ...`.
"""

import json
import os
import signal
import socket
import sys

#: Seconds to wait for the answer of a server, which may still be importing.
FORK_ANSWER_S = 40.0


def asked(address: str, command: list[str]) -> bool:
    """Is `command`, a Python file and its arguments, run by a process that the server at `address` made?

    It has the environment, folder, priority, blocked signals and open standard streams of this one.
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
                # From here on there is no answer, and so no fork; was there one before?
                server.shutdown(socket.SHUT_RDWR)
                answer = server.recv(1)
            return answer == b"1"
    except OSError:
        return False


if __name__ == "__main__":
    address, *command = sys.argv[1:]
    if not asked(address, command):
        os.execv(sys.executable, [sys.executable, *command])
