"""Commands as Ray would give them to a worker's Python, and what the processes say of themselves."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import psutil

PROGRAM = """
import json, os, signal, sys
modules = "torch" in sys.modules
said = {"argv": sys.argv, "folder": os.getcwd(), "preloaded": modules, "parent": os.getppid(), "pid": os.getpid(),
        "group": os.getpgid(0), "niceness": os.nice(0), "word": os.environ.get("WORD"), "home": sys.path[0],
        "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "children": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL}
print(json.dumps(said), flush=True)
print("to the other stream", file=sys.stderr, flush=True)
"""


def say(runtime_env: dict[str, str], folder: Path, *arguments: str, **options: Any) -> tuple[dict[str, Any], str]:
    """What a process that was started so says on both of its streams, which are pipes until it ends."""
    (folder / "program.py").write_text(PROGRAM)
    command = [*shlex.split(runtime_env["py_executable"]), str(folder / "program.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=100, **options)
    return json.loads(done.stdout), done.stderr


def server_of(runtime_env: dict[str, str]) -> psutil.Process:
    """The server that this process started."""
    address = shlex.split(runtime_env["py_executable"])[-1]
    (found,) = (
        each
        for each in psutil.Process(os.getpid()).children()
        if "rayjobs.processes.fork_server" in " ".join(each.cmdline()) and listens(each.pid, address)
    )
    return found


def listens(pid: int, address: str) -> bool:
    """Has the process the listening socket of this address?"""
    sockets = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if f"@{address}" in line}
    links = (os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir())
    return any(link == f"socket:[{inode}]" for link in links for inode in sockets)
