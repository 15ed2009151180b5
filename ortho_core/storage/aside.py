"""Names of what is written aside until it is whole. They tell whose it is, so that what a dead process left can be swept, and
nothing that is still being written.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ortho_core.storage.processes import born, this_machine

#: Seconds without a change after which the copy of another machine's process is taken for one that nobody finishes.
UNTOUCHED_S = 600.0

ENDINGS = (".partial", ".old")
_OWNER = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<born>\d*)-[0-9a-f]{8}\.(?:partial|old)$")


def aside(path: Path, ending: str = "partial") -> Path:
    """A new name beside `path`, hidden, that tells which process writes there."""
    pid = os.getpid()
    owner = f"{_mark(this_machine())}-{pid}-{born(pid)}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name}.{owner}.{ending}")


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A name for a folder beside `path`, which is gone after the block, with what is in it."""
    folder = aside(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder in the system's temporary folder, for what a library takes from a folder only. What a kill leaves there is removed
    by the next that is made.
    """
    place = Path(tempfile.gettempdir())
    sweep_aside(place, purpose)
    with folder_aside(place / purpose) as folder:
        folder.mkdir(mode=0o700)
        yield folder


def sweep_aside(folder: Path, name: str = "", *, alone: bool = False) -> None:
    """Remove files and folders that dead processes left aside directly in `folder`, of everything or of what is called `name`.

    Of another machine's process it is not known whether it lives: its copies go where nothing has changed them for a while,
    or at once if the caller is `alone`, holding the lease on the folder.
    """
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        found = [entry.name for entry in entries if entry.name.startswith(f".{name}") and entry.name.endswith(ENDINGS)]
        for each in found:
            path = folder / each
            if not _is_dead(path, alone):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def _is_dead(path: Path, alone: bool) -> bool:
    owner = _OWNER.search(path.name)
    if owner is not None and owner["machine"] == _mark(this_machine()) and this_machine():
        return born(int(owner["pid"])) != owner["born"]
    return alone or _untouched(path)


def _untouched(path: Path) -> bool:
    """Whether nothing in a file or folder was changed lately."""
    latest = 0.0
    with suppress(OSError):
        latest = path.lstat().st_mtime
        for folder, _, files in os.walk(path):
            latest = max([latest, *(os.lstat(os.path.join(folder, file)).st_mtime for file in files)])
    return time.time() - latest > UNTOUCHED_S


def _mark(machine: str) -> str:
    return hashlib.sha256(machine.encode()).hexdigest()[:8]
