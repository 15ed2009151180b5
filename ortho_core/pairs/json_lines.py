"""JSON lines: `pairs.jsonl` with image paths, and the imagefolder layout's `metadata.jsonl`. Prompts also as text."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ortho_core.errors import BadRow
from ortho_core.pairs.rows import Cut, Names, Pair, PairFields, Row, Shard, make_pair
from ortho_core.storage.store import Store


class JsonLines:
    """One file with one JSON object per line, or in a `.txt` file one prompt; blank lines do not count."""

    def __init__(self, root: Store, file: str, fields: PairFields) -> None:
        self.root, self.file = root, file
        folder_of_images = file.endswith("metadata.jsonl")
        self.names: Names = (
            fields.prompt_field or ("text" if folder_of_images else "prompt"),
            (fields.image_field or ("file_name" if folder_of_images else "image")) if fields.with_images else None,
            fields.id_field,
        )
        self._counted: tuple[str, int] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_counted": None}

    def _count(self) -> tuple[str, int]:
        """SHA-256 and number of rows, from one pass."""
        if self._counted is None:
            digest, rows = hashlib.sha256(), 0
            with self.root.open(self.file) as stream:
                for line in stream:
                    digest.update(line)
                    rows += bool(line.strip())
            self._counted = digest.hexdigest(), rows
        return self._counted

    def signature(self) -> str:
        return self._count()[0]

    def rows(self) -> int:
        return self._count()[1]

    def cuts(self, rows: int) -> Iterator[Cut]:
        start = count = offset = 0
        with self.root.open(self.file) as stream:
            for line in stream:
                if line.strip():
                    if count == 0:
                        start = offset
                    count += 1
                    if count == rows:
                        yield Cut(self.file, count, start)
                        count = 0
                offset += len(line)
        if count:
            yield Cut(self.file, count, start)

    def read(self, shard: Shard) -> Iterator[Row]:
        for row, line in lines_of(self.root, shard):
            try:
                yield self.parse(line, row)
            except BadRow as bad:
                yield row, bad

    def ids(self, shard: Shard) -> Iterator[Any]:
        for row, line in lines_of(self.root, shard):
            try:
                yield self._record(line, row).get(str(self.names[2]))
            except BadRow:
                yield None

    def parse(self, line: bytes, row: int) -> Pair:
        """Parse and validate one line. Raises BadRow."""
        return make_pair(row, self._record(line, row), self.names)

    def _record(self, line: bytes, row: int) -> dict[str, Any]:
        """Raises BadRow."""
        if not self.file.endswith(".txt"):
            return _record(line, row)
        try:
            return {self.names[0]: line.decode("utf-8-sig").strip()}
        except UnicodeDecodeError as error:
            raise BadRow("not-text", f"row {row} is not text in UTF-8: {error}") from error

    def fetch(self, image: str) -> None:
        return None


def lines_of(root: Store, shard: Shard) -> Iterator[tuple[int, bytes]]:
    """The shard's lines with their row numbers, blank ones left out; fewer than it has rows if the file has changed."""
    row = shard.first
    with root.open(shard.file) as stream:
        stream.seek(shard.offset)
        for line in stream:
            if row == shard.first + shard.rows:
                return
            if line.strip():
                yield row, line
                row += 1


def _record(line: bytes, row: int) -> dict[str, Any]:
    """Raises BadRow."""
    try:
        # Byte-order marks are what Windows editors put before the first row.
        record = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadRow("not-json", f"row {row} is not a JSON object in UTF-8: {error}") from error
    if not isinstance(record, dict):
        raise BadRow("not-json", f"row {row} is a JSON {type(record).__name__}, not an object")
    return record
