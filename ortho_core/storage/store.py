"""Folders on a local disk or an object store, behind one interface small enough to be exact about.

A name is a path relative to the folder, with forward slashes. What is written appears whole or not at all.
"""

import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ortho_core.text import plain_text

#: Bytes of a stream that are kept at hand: the `readline` of fsspec takes a whole block for each line.
BUFFER = 1 << 20


class OutsideRoot(ValueError):
    """A name leads out of its folder."""


class NotAFile(FileNotFoundError):
    """There is something else at a name: a folder, a pipe, a device, a socket. It was not opened."""

    is_folder = False


class TooLarge(ValueError):
    """A file has more bytes than are read."""

    def __init__(self, size: int) -> None:
        super().__init__(f"it has {size} bytes")
        #: Bytes that it has, or at least.
        self.size = size


def one_line(error: BaseException) -> str:
    """What an error says, as one line of at most 300 characters; libraries write whole paragraphs."""
    return plain_text.one_line(error)


def plain_name(name: str) -> str:
    """`name` without dots. Raises OutsideRoot if dots or a leading slash lead out of the folder, wherever links may lead."""
    plain = posixpath.normpath(name)
    if name.startswith("/") or plain == ".." or plain.startswith("../"):
        raise OutsideRoot(name)
    if "\0" in name:
        raise FileNotFoundError(f"{name[:200]!r} holds a null character")
    return plain


@dataclass
class Entries:
    """What lies directly in one folder below a store's, hidden names included.

    Whoever walks may take names out of `folders` before going on: these are not entered.
    """

    #: The folder, relative to the store's; empty for that one.
    path: str
    #: Files by name, with their bytes where the listing tells them.
    files: dict[str, int | None] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    #: Folders behind links, which are not entered: they may lead out of the store, or round in a circle.
    links: list[str] = field(default_factory=list)
    #: Names that lead to no file and no folder: links to nowhere, pipes.
    nowhere: list[str] = field(default_factory=list)
    #: Why the folder could not be read.
    unreadable: str | None = None


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

    def read_within(self, name: str, most: int) -> bytes:
        """A whole file of at most `most` bytes. Raises TooLarge for a larger one, which is not read."""
        ...

    def open(self, name: str) -> io.BufferedReader:
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

    def walk(self) -> Iterator[Entries]:
        """The folder and every folder below, each before those in it, in the order of their names."""
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

    def replace_from(self, name: str, source: io.BufferedIOBase) -> None:
        """`replace` with the whole content of an open file, which may be large."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers left behind, directly in the folder; what a writer at work has there stays."""
        ...
