"""Which process wrote something, and whether it is gone: of this machine that can be told, of another it cannot."""

import functools
import os
from pathlib import Path


@functools.cache
def this_machine() -> str:
    """What tells where a process id means something: the boot, and the ids' namespace; empty where they are not known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process began, in ticks since boot: another may have its id by now. Empty where it is gone, or not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
