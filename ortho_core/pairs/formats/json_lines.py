"""JSON lines: one JSON object per line; and text files of one prompt per line. Blank lines do not count."""

from collections.abc import Iterator
from dataclasses import replace
from io import BufferedIOBase
from typing import Any

import numpy as np

from ortho_core.errors import BadRow
from ortho_core.pairs.formats.delimited import Delimited
from ortho_core.pairs.formats.row_file import RowFile, in_blocks
from ortho_core.pairs.formats.text_lines import lines
from ortho_core.pairs.names import plain
from ortho_core.pairs.rows import Shard
from ortho_core.storage.store import Store
from ortho_core.text.parsing import NotParsedError, parse_json

NEWLINE, SPACE = b"\n "
#: Bytes whose lines are told together: more, and the allocator gives each piece back to the system.
READ_AT_ONCE = 1 << 18


class JsonLines:
    """A `Reader` of JSON objects."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        return table

    def starts(self, stream: BufferedIOBase, table: RowFile) -> Iterator[np.ndarray]:
        if table.encoding != "utf-8":
            yield from in_blocks(offset for offset, line in lines(stream, table.encoding) if line.strip())
            return
        offset = 0
        while content := stream.read(READ_AT_ONCE):  # a set of millions is counted and cut here
            if content[-1] != NEWLINE:
                content += stream.readline()
            yield offset + _line_starts(content)
            offset += len(content)

    def values(self, stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[dict[str, Any] | BadRow]:
        for _, line in lines(stream, table.encoding, offset):
            if line.strip():
                try:
                    yield self.parse(line, table)
                except BadRow as bad:
                    yield bad

    def parse(self, line: bytes, table: RowFile) -> dict[str, Any]:
        """Raises BadRow."""
        try:
            # Byte-order marks are what Windows editors put before the first row.
            record = parse_json(line)
        except NotParsedError as error:
            raise BadRow("not-json", f"not a JSON object in UTF-8: {error.why}") from error
        if not isinstance(record, dict):
            raise BadRow("not-json", f"a JSON {type(record).__name__}, not an object")
        return record


def _line_starts(content: bytes) -> np.ndarray:
    """Where the lines start that are not blank; there is one at least."""
    characters = np.frombuffer(content, np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(characters[:-1] == NEWLINE) + 1])
    suspects = np.flatnonzero(characters[starts] <= SPACE)
    if not len(suspects):
        return starts
    ends = np.append(starts[1:], len(content))
    return np.delete(starts, [i for i in suspects if content[starts[i] : ends[i]].isspace()])


class PromptLines(JsonLines):
    """A `Reader` of prompts alone, or of rows of cells if that is what they are."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        cells = Delimited().shape(stream, replace(table, reader=".csv"), wanted)
        known = isinstance(cells, RowFile) and len({plain(column) for column in cells.columns} & wanted) > 1
        return cells if known else table

    def parse(self, line: bytes, table: RowFile) -> dict[str, Any]:
        try:
            return {table.names[0]: line.decode("utf-8-sig").strip()}
        except UnicodeDecodeError as error:
            raise BadRow("not-text", f"not text in UTF-8: {error}") from error


def lines_of(root: Store, shard: Shard) -> Iterator[tuple[int, bytes]]:
    """The shard's lines with their row numbers, blank ones left out; fewer than it has rows if the file has changed."""
    row = shard.first
    with root.open(shard.file) as stream:
        for _, line in lines(stream, "utf-8", shard.offset):
            if row == shard.first + shard.rows:
                return
            if line.strip():
                yield row, line
                row += 1
