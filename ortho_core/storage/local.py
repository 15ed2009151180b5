"""A folder on a local or shared disk."""

import errno
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ortho_core.errors import UserError
from ortho_core.storage.aside import aside, sweep_aside
from ortho_core.storage.store import BUFFER, Entries, NotAFile, OutsideRoot, TooLarge, plain_name

#: Kinds of directory entries that are not regular files.
NOT_FILES = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class LocalStore:
    """A folder on a file system that this machine has mounted."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))

    def __reduce__(self) -> tuple[type["LocalStore"], tuple[Path]]:
        return LocalStore, (self.path,)

    @property
    def location(self) -> str:
        return str(self.path)

    def child(self, name: str) -> "LocalStore":
        return LocalStore(self.path / name)

    def contains(self, name: str) -> str:
        if self._is_plain(name):
            return name
        root = self.path.resolve()
        try:
            path = (root / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a null character
            raise FileNotFoundError(f"{name[:200]!r}: {error}") from error
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
        if path.parent == _blobs(root):
            return plain_name(name)
        raise OutsideRoot(name)

    def _is_plain(self, name: str) -> bool:
        """Whether a name has no `.`, `..` or link in it. Most have none, and this test is cheaper than resolving the path."""
        parts = name.split("/")
        if "\0" in name or not name or any(part in ("", ".", "..") for part in parts):
            return False
        return not any(os.path.islink(self.path / "/".join(parts[:n])) for n in range(1, len(parts) + 1))

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self.open(name) as stream:
            stream.seek(start)
            # `read(n)` allocates n bytes first, so n is limited to what the file has.
            available = max(0, os.fstat(stream.fileno()).st_size - start)
            return stream.read(-1 if length is None else min(length, available))

    def read_within(self, name: str, most: int) -> bytes:
        if (size := self.size(name)) > most:
            raise TooLarge(size)
        return self.read(name, 0, most)

    def open(self, name: str) -> io.BufferedReader:
        path = self.path / name
        # Checked before opening: opening a pipe blocks, and opening a device may have side effects.
        _check_regular(os.stat(path), name)
        stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
        try:
            _check_regular(os.fstat(stream.fileno()), name)
        except NotAFile:
            stream.close()
            raise
        return stream

    def names(self) -> list[str]:
        if not self.path.is_dir():
            return []
        return sorted(f.name for f in os.scandir(self.path) if not f.name.startswith(".") and _leads_to(f.is_file))

    def entries(self) -> list[str]:
        return sorted(n for n in os.listdir(self.path) if not n.startswith(".")) if self.path.is_dir() else []

    def find(self, suffix: str) -> list[tuple[str, int]]:
        matches = []
        for folder, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                file = Path(folder) / name
                if name.endswith(suffix) and not name.startswith(".") and file.is_file():  # not a broken link
                    matches.append((file.relative_to(self.path).as_posix(), file.stat().st_size))
        return sorted(matches)

    def walk(self) -> Iterator[Entries]:
        waiting = [""]
        while waiting:
            entries = Entries(waiting.pop())
            try:
                with os.scandir(self.path / entries.path) as scan:
                    for entry in scan:
                        linked = entry.is_symlink()
                        if _leads_to(entry.is_dir):
                            (entries.links if linked else entries.folders).append(entry.name)
                        elif _leads_to(entry.is_file):
                            entries.files[entry.name] = None
                        else:
                            entries.nowhere.append(entry.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                entries.unreadable = error.strerror
            entries.folders.sort()
            yield entries
            inside = entries.path + "/" if entries.path else ""
            waiting += [inside + name for name in reversed(entries.folders)]

    def touched(self, name: str, written: float) -> bool:
        # `create` sets the time; the coarsest file systems round it to one second.
        return abs((self.path / name).stat().st_mtime - written) > 1

    def create(self, name: str, content: bytes, written: float | None = None) -> bool:
        path = self.path / name
        for attempt in range(2):
            with _Aside(path, lambda stream: stream.write(content), written) as copy:
                try:
                    _link(copy, path)
                    return True
                except FileExistsError:
                    check_no_folder(path)
                    return False
                except (
                    FileNotFoundError
                ):  # this process was suspended, and another machine swept its copy; retried once
                    if attempt:
                        raise
        raise AssertionError("unreachable")

    def replace(self, name: str, content: bytes) -> None:
        check_no_folder(self.path / name)
        with _Aside(self.path / name, lambda stream: stream.write(content)) as copy:
            os.replace(copy, self.path / name)

    def replace_from(self, name: str, source: io.BufferedIOBase) -> None:
        check_no_folder(self.path / name)
        source.seek(0)
        with _Aside(self.path / name, lambda stream: shutil.copyfileobj(source, stream, BUFFER)) as copy:
            os.replace(copy, self.path / name)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        sweep_aside(self.path)


def _leads_to(kind: Callable[[], bool]) -> bool:
    """The result of an entry's `is_file` or `is_dir`; False for a loop of links."""
    try:
        return kind()
    except OSError:
        return False


def _blobs(root: Path) -> Path | None:
    """The `blobs` folder that a snapshot in the Hugging Face hub's cache links to; None outside such a cache."""
    return next((p.parents[1] / "blobs" for p in (root, *root.parents) if p.parent.name == "snapshots"), None)


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_of, kind in NOT_FILES if is_of(status.st_mode)), "something else")
        fault = NotAFile(errno.ENOENT, f"it is a {kind}, not a regular file", name)
        fault.is_folder = stat.S_ISDIR(status.st_mode)
        raise fault


def check_no_folder(path: Path) -> None:
    """Raises UserError if a folder has the name of a file to be written: a retry would meet it again."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, but a file of this name must be written: move the folder away, or delete it"
        )


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for a writer if the path is a pipe; it makes no difference for files."""
    return os.open(path, flags | os.O_NONBLOCK)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name. Raises FileExistsError or FileNotFoundError."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # no hard links on this file system: rename, which at worst replaces an equal file
        os.replace(source, target)


class _Aside:
    """A temporary file beside `path`: `fill` writes its content, which is synced to disk. Removed at the end of the block."""

    def __init__(self, path: Path, fill: Callable[[IO[bytes]], object], written: float | None = None) -> None:
        self.aside = aside(path)
        self.fill, self.written = fill, written

    def __enter__(self) -> Path:
        try:
            self.aside.parent.mkdir(parents=True, exist_ok=True)
            with self.aside.open("wb") as stream:
                self.fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            if self.written is not None:
                os.utime(self.aside, (self.written, self.written))
        except BaseException:
            self.aside.unlink(missing_ok=True)
            raise
        return self.aside

    def __exit__(self, *_: object) -> None:
        self.aside.unlink(missing_ok=True)
