"""SHA-256 of files, kept between processes: gigabytes of weights are read once, not by every job that uses them.

What is known lies in the user's cache folder, one small file per path, and may be deleted at any time. It counts as long as size,
time of change and inode of the file are the same. A store that cannot be read or written is none: the file is read again.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ortho_core.storage.local import LocalStore
from ortho_core.text.parsing import parse_json

#: Nanoseconds within which two changes of a file may carry the same time; what changed so lately is not kept.
TICK_NS = 2_000_000_000

#: Path, size, time of change in ns, inode.
State = tuple[str, int, int, int]

#: What this process knows; it stands in where the folder cannot be written.
_known: dict[State, str] = {}


def content_hash(file: Path) -> str:
    """SHA-256 (hex) of a file's content, which is not read again while the file has not changed. Raises OSError."""
    state = _state(file)
    digest = _known.get(state) or _recall(state)
    if digest is None:
        began = time.time_ns()
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if _state(file) == state and began - state[2] > TICK_NS:
            _known[state] = digest
            _keep(state, digest)
    return digest


def hash_folder() -> Path:
    """Where hashes are kept, after the XDG base directory specification. Raises RuntimeError for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "ortho" / "hashes"


def _state(file: Path) -> State:
    path = os.path.realpath(file)
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns, status.st_ino


def _entry(state: State) -> Path:
    return hash_folder() / f"{hashlib.sha256(os.fsencode(state[0])).hexdigest()[:32]}.json"


def _recall(state: State) -> str | None:
    try:
        *known, digest = parse_json(_entry(state).read_bytes())
        return str(digest) if tuple(known) == state and len(bytes.fromhex(digest)) == 32 else None
    except (OSError, RuntimeError, ValueError, TypeError):
        return None


def _keep(state: State, digest: str) -> None:
    """Replace what was known of the path. Of several writers at once, one entry stays, and it is whole."""
    with contextlib.suppress(OSError, RuntimeError):
        entry = _entry(state)
        folder = LocalStore(entry.parent)
        folder.sweep()
        folder.replace(entry.name, json.dumps([*state, digest]).encode())
