"""Names of temporary files and folders, which are written beside their target until they are complete. The name contains the
process that writes: copies of dead processes can be removed, and those of live ones are kept.
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

#: A temporary copy of another machine's process counts as abandoned after this many seconds without a change.
UNTOUCHED_S = 600.0

ENDINGS = (".partial", ".old")
_OWNER = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<born>\d*)-[0-9a-f]{8}\.(?:partial|old)$")


def aside(path: Path, ending: str = "partial") -> Path:
    """A new hidden name beside `path`, which contains the machine, id and start time of this process."""
    pid = os.getpid()
    owner = f"{_mark(this_machine())}-{pid}-{born(pid)}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name}.{owner}.{ending}")


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A name for a temporary folder beside `path`; the folder is removed with its contents after the block."""
    folder = aside(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder in the system's temporary folder, for libraries that read from folders only. Folders left by killed processes are
    removed by the next call with the same purpose.
    """
    place = Path(tempfile.gettempdir())
    sweep_aside(place, purpose)
    with folder_aside(place / purpose) as folder:
        folder.mkdir(mode=0o700)
        yield folder


def sweep_aside(folder: Path, name: str = "", *, alone: bool = False) -> None:
    """Remove temporary files and folders of dead processes directly in `folder`: all of them, or those for a target `name`.

    Whether a process of another machine is alive is unknown: its copies are removed if unchanged for `UNTOUCHED_S`, or at once
    if the caller is `alone`, that is, holds the lease on the folder.
    """
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        copies = [entry.name for entry in entries if entry.name.startswith(f".{name}") and entry.name.endswith(ENDINGS)]
        for copy in copies:
            path = folder / copy
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
    """Whether nothing in a file or folder was changed in the last `UNTOUCHED_S` seconds."""
    latest = 0.0
    with suppress(OSError):
        latest = path.lstat().st_mtime
        for folder, _, files in os.walk(path):
            latest = max([latest, *(os.lstat(os.path.join(folder, file)).st_mtime for file in files)])
    return time.time() - latest > UNTOUCHED_S


def _mark(machine: str) -> str:
    return hashlib.sha256(machine.encode()).hexdigest()[:8]
