"""JSON lines: one JSON object per line; and text files of one prompt per line. Blank lines do not count."""

import itertools
import json
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedIOBase
from typing import Any

from ortho_core.errors import BadRow
from ortho_core.pairs.formats.delimited import Delimited
from ortho_core.pairs.formats.row_file import RowFile, length
from ortho_core.pairs.formats.text_lines import lines
from ortho_core.pairs.names import plain
from ortho_core.pairs.rows import Shard
from ortho_core.storage.store import Store


class JsonLines:
    """A `Reader` of JSON objects."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        return table

    def starts(self, stream: BufferedIOBase, table: RowFile) -> Iterator[int]:
        if table.encoding != "utf-8":
            return (offset for offset, line in lines(stream, table.encoding) if line.strip())
        # A set of millions is counted and cut here, in loops that are not Python's.
        measured, looked_at = itertools.tee(stream)
        offsets = itertools.accumulate(map(len, measured), initial=0)
        return itertools.compress(offsets, map(operator.not_, map(bytes.isspace, looked_at)))

    def count(self, stream: BufferedIOBase, table: RowFile) -> int:
        if table.encoding != "utf-8":
            return length(self.starts(stream, table))
        return Counter(map(bytes.isspace, stream))[False]

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
            record = json.loads(line.decode("utf-8-sig"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise BadRow("not-json", f"not a JSON object in UTF-8: {error}") from error
        if not isinstance(record, dict):
            raise BadRow("not-json", f"a JSON {type(record).__name__}, not an object")
        return record


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
