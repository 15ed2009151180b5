"""A folder in an object store, at any URL that fsspec or pyarrow opens."""

import errno
import io
import shutil
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ortho_core.errors import UserError
from ortho_core.storage.store import BUFFER, Entries, TooLarge, one_line, plain_name

#: Bytes that a stream reads ahead. The default of s3fs, 50 MiB, is several times a shard.
READ_AHEAD = 4 << 20


class ObjectStore:
    """A prefix of an object store, or any other file system that fsspec or pyarrow opens by a URL.

    An object appears whole when its upload is complete. `create` is the store's conditional write if fsspec supports it (S3,
    Google Cloud Storage). Elsewhere it checks for the object first; if two writers collide, the later one's equal copy stays.
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
        try:  # `isfile` would report every failure as a missing file
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

    def read_within(self, name: str, most: int) -> bytes:
        content = self.read(name, 0, most + 1)  # one request instead of two: the size is not requested first
        if len(content) > most:
            raise TooLarge(len(content))
        return content

    def open(self, name: str) -> io.BufferedReader:
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

    def walk(self) -> Iterator[Entries]:
        folders: dict[str, Entries] = {"": Entries("")}

        def folder(path: str) -> Entries:
            if path not in folders:
                parent, _, name = path.rpartition("/")
                folders[path] = Entries(path)
                folder(parent).folders.append(name)
            return folders[path]

        for name, size in self._listing(depth=None, hidden=True):
            path, _, base = name.rpartition("/")
            folder(path).files[base] = size
        waiting = [""] if len(folders) > 1 or folders[""].files else []
        while waiting:
            entries = folders[waiting.pop()]
            entries.folders.sort()
            yield entries
            inside = entries.path + "/" if entries.path else ""
            waiting += [inside + name for name in reversed(entries.folders)]

    def _listing(self, depth: int | None, hidden: bool = False) -> Iterator[tuple[str, int]]:
        self.filesystem.invalidate_cache()
        with suppress(FileNotFoundError):
            for path, about in self.filesystem.find(self.path, maxdepth=depth, detail=True).items():
                name = path[len(self.path) :].lstrip("/")
                if not name or name.endswith("/"):  # consoles mark a folder with an empty object
                    continue
                if hidden or not any(part.startswith(".") for part in name.split("/")):
                    yield name, int(about["size"] or 0)

    def touched(self, name: str, written: float) -> bool:
        return False  # an object is never changed in place, and a new upload has a different Parquet footer

    def create(self, name: str, content: bytes, written: float | None = None) -> bool:
        try:
            self.filesystem.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        except OSError:
            if self.exists(name):  # two conditional writes at once: the store refuses one as a conflict
                return False
            raise
        return True

    def replace(self, name: str, content: bytes) -> None:
        self.filesystem.pipe_file(self._path(name), content)

    def replace_from(self, name: str, source: io.BufferedIOBase) -> None:
        source.seek(0)
        target = self.filesystem.open(self._path(name), "wb")
        try:
            shutil.copyfileobj(source, target, BUFFER)
        except BaseException:
            with suppress(Exception):  # closing it, also by garbage collection, would publish the incomplete object
                target.discard()
                target.closed = True
            raise
        target.close()

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(self._path(name))

    def sweep(self) -> None:
        """Nothing to do: an interrupted upload leaves no object."""


def _open_filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    if url.endswith(":"):  # the caller removed trailing slashes
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
