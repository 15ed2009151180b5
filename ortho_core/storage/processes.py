"""Identify processes, to know whether a writer has ended. That can be known only of processes on this machine."""

import functools
import os
from pathlib import Path


@functools.cache
def this_machine() -> str:
    """The scope in which process ids are unique: the machine's boot id and the pid namespace. Empty if they cannot be read."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """Start time of a process, in ticks since boot: a pid may be reused. Empty if the process has ended or cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
