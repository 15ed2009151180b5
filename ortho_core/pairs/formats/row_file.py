"""A file whose rows name their images by paths, and the protocol of its readers."""

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

#: Names of a record's fields before the real ones are known.
UNNAMED: Names = ("prompt", "image", None)


#: Number of row starts per block.
STARTS_TOGETHER = 4096


@dataclass(frozen=True)
class RowFile:
    """One file of rows, and how it is read."""

    file: str
    names: Names = UNNAMED
    #: The places of the images.
    places: Places = AS_WRITTEN
    encoding: Encoding = "utf-8"
    #: CSV: the delimiter. JSON: the bracket that opens the rows.
    form: str = ""
    #: JSON: the byte offset of that bracket, and that of a separate list of captions by image id, if there is one.
    start: int = 0
    captions: int | None = None
    #: CSV: the columns, in order.
    columns: tuple[str, ...] = ()
    #: CSV: whether the first row names the columns.
    header: bool = True
    #: The suffix whose reader is used (empty: that of the file).
    reader: str = ""

    @property
    def kind(self) -> str:
        return self.reader or PurePosixPath(self.file).suffix.lower()


@runtime_checkable
class Reader(Protocol):
    """Reads rows from files of one kind. Methods raise UserError if the file cannot be read further."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        """The table with the facts needed to read its rows, or a message why it has none.

        `wanted` are field names in the form of `names.plain`, by which a header is recognised.
        """
        ...

    def starts(self, stream: BufferedIOBase, table: RowFile) -> Iterator[np.ndarray]:
        """Byte offsets of the rows, from the start of the file, in order: int64, in blocks."""
        ...

    def values(self, stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[dict[str, Any] | BadRow]:
        """The rows from the one that starts at byte `offset` on; all rows from 0."""
        ...


def in_blocks(starts: Iterator[int]) -> Iterator[np.ndarray]:
    """Group single offsets into the blocks of `Reader.starts`."""
    while len(block := np.fromiter(itertools.islice(starts, STARTS_TOGETHER), np.int64)):
        yield block
