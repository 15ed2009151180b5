"""Folders on a local disk or an object store, behind one interface small enough to be exact about.

A name is a path relative to the folder, with forward slashes. What is written appears whole or not at all.
"""

import errno
import io
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any, Protocol, runtime_checkable

from pydantic import BeforeValidator

from ortho_core.errors import UserError

#: An option that takes a local path or a URL; always a string.
Location = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)]

#: Bytes of a stream that are kept at hand: the `readline` of fsspec takes a whole block for each line.
BUFFER = 1 << 20
#: Bytes that a stream of an object store reads ahead; s3fs by itself reads 50 MiB, several times a shard.
READ_AHEAD = 4 << 20


class OutsideRoot(ValueError):
    """A name leads out of its folder."""


def one_line(error: BaseException) -> str:
    """What an error says, as one line of at most 300 characters; libraries write whole paragraphs."""
    return " ".join(str(error).split())[:300]


def plain_name(name: str) -> str:
    """`name` without dots. Raises OutsideRoot if dots or a leading slash lead out of the folder, wherever links may lead."""
    plain = posixpath.normpath(name)
    if name.startswith("/") or plain == ".." or plain.startswith("../"):
        raise OutsideRoot(name)
    if "\0" in name:
        raise FileNotFoundError(f"{name[:200]!r} holds a null character")
    return plain


@runtime_checkable
class Store(Protocol):
    """One folder. Raises FileNotFoundError for a name that is not there, OSError for what else goes wrong."""

    @property
    def location(self) -> str:
        """The folder as a user would write it, absolute."""
        ...

    def child(self, name: str) -> "Store": ...

    def contains(self, name: str) -> str:
        """`name`, made plain. Raises OutsideRoot if it leads out of the folder, by dots, as an absolute path or by a link."""
        ...

    def exists(self, name: str) -> bool: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes: ...

    def open(self, name: str) -> IO[bytes]:
        """A seekable stream for reading."""
        ...

    def names(self) -> list[str]:
        """The files directly in the folder, sorted; empty if there is no folder."""
        ...

    def entries(self) -> list[str]:
        """`names`, and the folders directly in the folder."""
        ...

    def find(self, suffix: str) -> list[tuple[str, int]]:
        """Every file below the folder that ends in `suffix`, as (name, bytes), sorted by name."""
        ...

    def touched(self, name: str, written: float) -> bool:
        """Whether a file that was written at `written` (seconds since the epoch) was changed afterwards."""
        ...

    def create(self, name: str, content: bytes, written: float | None = None) -> bool:
        """Write a file unless it is there: then False, and ours is discarded. Of several writers exactly one gets True."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Write a file in place of whatever is there; a reader sees the old or the new content, never a part."""
        ...

    def replace_file(self, name: str, source: Path) -> None:
        """`replace` with the content of a local file, which may be large."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def sweep(self, prefix: str) -> None:
        """Remove what killed writers of files with such names left behind; a writer at work survives it."""
        ...


def open_store(location: str | Path) -> Store:
    """The folder at a path or URL; it need not exist. Raises UserError if nothing here opens such a URL."""
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return ObjectStore(text) if "://" in text else LocalStore(Path(text))


def absolute(location: str | Path) -> str:
    """A local path made absolute, a URL as it is."""
    return open_store(location).location


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
        root = self.path.resolve()
        try:
            path = (root / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null character
            raise FileNotFoundError(f"{name[:200]!r}: {error}") from error
        if not path.is_relative_to(root):
            raise OutsideRoot(name)
        return path.relative_to(root).as_posix()

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self.open(name) as stream:
            stream.seek(start)
            return stream.read(-1 if length is None else length)

    def open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")

    def names(self) -> list[str]:
        if not self.path.is_dir():
            return []
        return sorted(f.name for f in os.scandir(self.path) if f.is_file() and not f.name.startswith("."))

    def entries(self) -> list[str]:
        return sorted(n for n in os.listdir(self.path) if not n.startswith(".")) if self.path.is_dir() else []

    def find(self, suffix: str) -> list[tuple[str, int]]:
        found = []
        for folder, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                file = Path(folder) / name
                if name.endswith(suffix) and not name.startswith(".") and file.is_file():  # not a link to nowhere
                    found.append((file.relative_to(self.path).as_posix(), file.stat().st_size))
        return sorted(found)

    def touched(self, name: str, written: float) -> bool:
        # `create` sets the time; one second is what the coarsest file system rounds to.
        return abs((self.path / name).stat().st_mtime - written) > 1

    def create(self, name: str, content: bytes, written: float | None = None) -> bool:
        path = self.path / name
        for attempt in range(2):
            with _Aside(path, lambda stream: stream.write(content), written) as aside:
                try:
                    _link(aside, path)
                    return True
                except FileExistsError:
                    return False
                except FileNotFoundError:  # another driver has finished and swept our copy away; not twice
                    if attempt:
                        raise
        raise AssertionError("unreachable")

    def replace(self, name: str, content: bytes) -> None:
        with _Aside(self.path / name, lambda stream: stream.write(content)) as aside:
            os.replace(aside, self.path / name)

    def replace_file(self, name: str, source: Path) -> None:
        with (
            source.open("rb") as content,
            _Aside(self.path / name, lambda stream: shutil.copyfileobj(content, stream, BUFFER)) as aside,
        ):
            os.replace(aside, self.path / name)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sweep(self, prefix: str) -> None:
        for leftover in self.path.glob(f".{prefix}*.partial"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name. Raises FileExistsError or FileNotFoundError."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links: rename, which replaces an equal file at worst
        os.replace(source, target)


class _Aside:
    """A file beside `path` with its content, which `fill` writes, safely on the disk; gone at the end of the block."""

    def __init__(self, path: Path, fill: Callable[[IO[bytes]], object], written: float | None = None) -> None:
        self.aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
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


class ObjectStore:
    """A prefix of an object store, or any other file system that fsspec or pyarrow opens by a URL.

    An object appears whole when its upload is complete. `create` is the store's own conditional write where fsspec passes
    it on (S3, Google Cloud Storage); elsewhere it looks first, and of two writers at the same instant the later one's equal
    copy stays.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.filesystem, path = _open_filesystem(self.url)
        self.path = path.rstrip("/")

    def __reduce__(self) -> tuple[type["ObjectStore"], tuple[str]]:
        return ObjectStore, (self.url,)

    @property
    def location(self) -> str:
        return self.url

    def child(self, name: str) -> "ObjectStore":
        return ObjectStore(f"{self.url}/{name}")

    def contains(self, name: str) -> str:
        return plain_name(name)

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self, name: str) -> bool:
        self.filesystem.invalidate_cache()
        try:  # `isfile` would call every failure an absence
            return bool(self.filesystem.info(self._path(name))["type"] == "file")
        except FileNotFoundError:
            return False

    def size(self, name: str) -> int:
        return int(self.filesystem.size(self._path(name)))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path, end = self._path(name), None if length is None else start + length
        if not start and end is None:
            return bytes(self.filesystem.cat_file(path))
        if length == 0:
            return b""  # HTTP has no empty range: a server sends the whole object
        try:
            return bytes(self.filesystem.cat_file(path, start=start, end=end))
        except OSError as error:
            if error.errno == errno.EINVAL and start >= self.size(name):
                return b""  # a range beyond the end
            raise

    def open(self, name: str) -> IO[bytes]:
        return io.BufferedReader(self.filesystem.open(self._path(name), "rb", block_size=READ_AHEAD), BUFFER)

    def names(self) -> list[str]:
        return sorted(name for name, _ in self._listing(depth=1))

    def entries(self) -> list[str]:
        self.filesystem.invalidate_cache()
        try:
            paths = self.filesystem.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        names = {path[len(self.path) :].strip("/") for path in paths}
        return sorted(name for name in names if name and not name.startswith("."))

    def find(self, suffix: str) -> list[tuple[str, int]]:
        return sorted((name, size) for name, size in self._listing(depth=None) if name.endswith(suffix))

    def _listing(self, depth: int | None) -> Iterator[tuple[str, int]]:
        self.filesystem.invalidate_cache()
        with suppress(FileNotFoundError):
            for path, about in self.filesystem.find(self.path, maxdepth=depth, detail=True).items():
                name = path[len(self.path) :].lstrip("/")
                hidden = any(part.startswith(".") for part in name.split("/"))
                if name and not hidden and not name.endswith("/"):  # consoles mark a folder with an empty object
                    yield name, int(about["size"] or 0)

    def touched(self, name: str, written: float) -> bool:
        return False  # an object is never changed in place, and what was uploaded in its stead has a footer of its own

    def create(self, name: str, content: bytes, written: float | None = None) -> bool:
        try:
            self.filesystem.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        except OSError:
            if self.exists(name):  # two conditional writes at once: the store refuses one of them as a conflict
                return False
            raise
        return True

    def replace(self, name: str, content: bytes) -> None:
        self.filesystem.pipe_file(self._path(name), content)

    def replace_file(self, name: str, source: Path) -> None:
        self.filesystem.put_file(str(source), self._path(name))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(self._path(name))

    def sweep(self, prefix: str) -> None:
        """An upload that was cut short leaves no object."""


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    if url.endswith(":"):  # the slashes are gone
        raise UserError(f"cannot open {url}//: it names no folder")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        return filesystem, str(path)
    except ImportError as missing:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem

        try:
            arrow, path = FileSystem.from_uri(url)
        except Exception as error:
            raise UserError(f"cannot open {url}: {one_line(missing)}") from error
        return ArrowFSWrapper(arrow), str(path)
    except Exception as error:
        raise UserError(f"cannot open {url}: {one_line(error)}") from error
