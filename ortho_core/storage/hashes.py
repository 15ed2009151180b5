"""SHA-256 of files, cached between processes: gigabytes of weights are read once, not by every job that uses them.

The cache is a folder in the user's cache folder, with one small file per path; it may be deleted at any time. An entry is valid
while the file's size, time of change and inode are the same. If the cache cannot be read or written, the file is hashed again.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ortho_core.storage.local import LocalStore
from ortho_core.text.parsing import parse_json

#: Two changes of a file within this many nanoseconds may have the same time stamp. Files changed so recently are not cached.
TICK_NS = 2_000_000_000

#: Path, size, time of change in ns, inode.
State = tuple[str, int, int, int]

#: Hashes of this process; used also if the cache folder cannot be written.
_known: dict[State, str] = {}


def content_hash(file: Path) -> str:
    """SHA-256 (hex) of a file's content. An unchanged file is not read again. Raises OSError."""
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
    """The folder of the cache, after the XDG base directory specification. Raises RuntimeError for a user without a home."""
    xdg_cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg_cache) if os.path.isabs(xdg_cache) else Path.home() / ".cache") / "ortho" / "hashes"


def _state(file: Path) -> State:
    path = os.path.realpath(file)
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns, status.st_ino


def _entry(state: State) -> Path:
    return hash_folder() / f"{hashlib.sha256(os.fsencode(state[0])).hexdigest()[:32]}.json"


def _recall(state: State) -> str | None:
    try:
        *cached, digest = parse_json(_entry(state).read_bytes())
        return str(digest) if tuple(cached) == state and len(bytes.fromhex(digest)) == 32 else None
    except (OSError, RuntimeError, ValueError, TypeError):
        return None


def _keep(state: State, digest: str) -> None:
    """Replace the path's entry. If several processes write at once, the entry of one of them stays, complete."""
    with contextlib.suppress(OSError, RuntimeError):
        entry = _entry(state)
        folder = LocalStore(entry.parent)
        folder.sweep()
        folder.replace(entry.name, json.dumps([*state, digest]).encode())
