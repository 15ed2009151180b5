"""One file whose rows name their images by paths, and what reads such a file."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ortho_core.errors import BadRow
from ortho_core.pairs.formats.places import AS_WRITTEN, Places
from ortho_core.pairs.formats.text_lines import Encoding
from ortho_core.pairs.rows import Names

#: Whoever asks for the names of a record's fields before they are known.
UNNAMED: Names = ("prompt", "image", None)


#: Rows whose starts are told together.
BLOCK = 4096


@dataclass(frozen=True)
class RowFile:
    """One file of rows, and how it is read."""

    file: str
    names: Names = UNNAMED
    #: Where the images are.
    places: Places = AS_WRITTEN
    encoding: Encoding = "utf-8"
    #: Of a CSV file what parts its columns; of a JSON file the bracket that opens its rows.
    form: str = ""
    #: Of a JSON file the byte where that bracket is, and the one of a list of captions by the images' ids, if there is one.
    start: int = 0
    captions: int | None = None
    #: Of a CSV file, in order.
    columns: tuple[str, ...] = ()
    #: Whether its first row names the columns.
    header: bool = True
    #: Which reader reads it; none: the one of its suffix.
    reader: str = ""

    @property
    def kind(self) -> str:
        return self.reader or PurePosixPath(self.file).suffix.lower()


@runtime_checkable
class Reader(Protocol):
    """How rows are kept in a file of one kind. Raises UserError for a file that cannot be read on."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        """The table with what this kind of file needs to know before its rows are read, or why there are none.

        `wanted` are names of fields, as `names.plain` has them, that a header is known by.
        """
        ...

    def starts(self, stream: BufferedIOBase, table: RowFile) -> Iterator[np.ndarray]:
        """Where each row starts, from the file's beginning, in order: int64, many at a time."""
        ...

    def values(self, stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[dict[str, Any] | BadRow]:
        """The rows from the one that starts at `offset` on; all of them from 0."""
        ...


def in_blocks(starts: Iterator[int]) -> Iterator[np.ndarray]:
    """What `Reader.starts` gives, of one number after another."""
    while len(block := np.fromiter(itertools.islice(starts, BLOCK), np.int64)):
        yield block
