"""JSON lines: one JSON object per line; and text files with one prompt per line. Blank lines are skipped."""

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
#: Bytes per read. Larger blocks are slower: the allocator returns each of them to the system.
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
        while content := stream.read(READ_AT_ONCE):  # a fast path, since sets may have millions of rows
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
        """The object of one line. Raises BadRow."""
        try:
            record = parse_json(line)
        except NotParsedError as error:
            raise BadRow("not-json", f"not a JSON object in UTF-8: {error.why}") from error
        if not isinstance(record, dict):
            raise BadRow("not-json", f"a JSON {type(record).__name__}, not an object")
        return record


def _line_starts(content: bytes) -> np.ndarray:
    """Offsets of the non-blank lines in `content`, which has at least one line."""
    characters = np.frombuffer(content, np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(characters[:-1] == NEWLINE) + 1])
    suspects = np.flatnonzero(characters[starts] <= SPACE)
    if not len(suspects):
        return starts
    ends = np.append(starts[1:], len(content))
    return np.delete(starts, [i for i in suspects if content[starts[i] : ends[i]].isspace()])


class PromptLines(JsonLines):
    """A `Reader` of one prompt per line, or of delimited cells if the first row is a header with known names."""

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
    """(row number, line) of the shard's non-blank lines; fewer than the shard's rows if the file has changed."""
    row = shard.first
    with root.open(shard.file) as stream:
        for _, line in lines(stream, "utf-8", shard.offset):
            if row == shard.first + shard.rows:
                return
            if line.strip():
                yield row, line
                row += 1
