"""Folders on a local disk or in an object store, behind one small interface.

A name is a path relative to the folder, with forward slashes. Writes are atomic: a file appears whole or not at all.
"""

import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ortho_core.text import plain_text

#: Buffer of a stream, in bytes. Without one, fsspec's `readline` fetches a whole block for each line.
BUFFER = 1 << 20


class OutsideRoot(ValueError):
    """A name points outside its folder."""


class NotAFile(FileNotFoundError):
    """The name belongs to a folder, a pipe, a device or a socket. It was not opened."""

    is_folder = False


class TooLarge(ValueError):
    """A file is larger than the reader accepts."""

    def __init__(self, size: int) -> None:
        super().__init__(f"it has {size} bytes")
        #: Size of the file in bytes, or a lower bound of it.
        self.size = size


def one_line(error: BaseException) -> str:
    """The message of an error as one line of at most 300 characters; some libraries write whole paragraphs."""
    return plain_text.one_line(error)


def plain_name(name: str) -> str:
    """`name` without `.` and `..`; links are not followed. Raises OutsideRoot if it leads out of the folder."""
    plain = posixpath.normpath(name)
    if name.startswith("/") or plain == ".." or plain.startswith("../"):
        raise OutsideRoot(name)
    if "\0" in name:
        raise FileNotFoundError(f"{name[:200]!r} contains a null character")
    return plain


@dataclass
class Entries:
    """The direct contents of one folder of a store, hidden names included.

    A caller of `walk` may remove names from `folders` before the next step: these are not entered.
    """

    #: The folder, relative to the store's folder; empty for the store's folder.
    path: str
    #: Files by name, with the size in bytes if the listing has it.
    files: dict[str, int | None] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    #: Links to folders. They are not entered: they may lead out of the store, or form a loop.
    links: list[str] = field(default_factory=list)
    #: Names that are neither file nor folder: broken links, pipes.
    nowhere: list[str] = field(default_factory=list)
    #: The reason why the folder could not be read.
    unreadable: str | None = None


@runtime_checkable
class Store(Protocol):
    """One folder. Methods raise FileNotFoundError for a missing name, and OSError for any other failure."""

    @property
    def location(self) -> str:
        """The absolute path or URL of the folder, as a user would write it."""
        ...

    def child(self, name: str) -> "Store": ...

    def contains(self, name: str) -> str:
        """`name`, normalised. Raises OutsideRoot if it leads out of the folder: by `..`, as an absolute path or by a link."""
        ...

    def exists(self, name: str) -> bool: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes: ...

    def read_within(self, name: str, most: int) -> bytes:
        """The content of a file of at most `most` bytes. Raises TooLarge for a larger file, without reading all of it."""
        ...

    def open(self, name: str) -> io.BufferedReader:
        """A seekable stream for reading."""
        ...

    def names(self) -> list[str]:
        """The files directly in the folder, sorted; empty if the folder does not exist."""
        ...

    def entries(self) -> list[str]:
        """The files and folders directly in the folder, sorted."""
        ...

    def find(self, suffix: str) -> list[tuple[str, int]]:
        """Every file below the folder whose name ends in `suffix`, as (name, bytes), sorted by name."""
        ...

    def walk(self) -> Iterator[Entries]:
        """The folder and all folders below it: a parent before its children, children sorted by name."""
        ...

    def touched(self, name: str, written: float) -> bool:
        """Whether a file written at time `written` (seconds since the epoch) was changed later."""
        ...

    def create(self, name: str, content: bytes, written: float | None = None) -> bool:
        """Write a file unless it exists; then False, and `content` is discarded. Exactly one of several writers gets True."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, over an existing one if necessary; a reader sees the old or the new content, never a part."""
        ...

    def replace_from(self, name: str, source: io.BufferedIOBase) -> None:
        """`replace` with the full content of an open file, which may be large."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        ...

    def sweep(self) -> None:
        """Remove the partial files that killed writers left directly in the folder. Files of live writers stay."""
        ...
