"""Files whose rows name their images by paths: JSON lines, CSV, JSON. One file, or one after another."""

import hashlib
import io
import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.delimited import Delimited
from ortho_core.pairs.formats.json_documents import JsonDocuments
from ortho_core.pairs.formats.json_lines import JsonLines, PromptLines
from ortho_core.pairs.formats.row_file import Reader, RowFile
from ortho_core.pairs.formats.text_lines import encoding_of
from ortho_core.pairs.rows import Cut, PairRecord, RecordsHaveAll, Shard
from ortho_core.storage.store import BUFFER, Store

#: By suffix.
READERS: dict[str, Reader] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), JsonLines()),
    **dict.fromkeys((".csv", ".tsv"), Delimited()),
    ".json": JsonDocuments(),
    ".txt": PromptLines(),
}


@dataclass
class Looks:
    """What the first rows of a file say of it."""

    table: RowFile
    #: All fields of these rows, in the order in which they were met.
    fields: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    #: Why nothing here reads the file.
    problem: str | None = None


class RowFiles(RecordsHaveAll):
    """RowFiles of the same kind of rows, in order."""

    def __init__(self, root: Store, tables: list[RowFile]) -> None:
        self.root = root
        self.tables = {table.file: table for table in tables}
        self._counted: list[tuple[str, int]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_counted": None}

    def _count(self) -> list[tuple[str, int]]:
        """SHA-256 and number of rows of each file, from one pass."""
        if self._counted is None:
            counted = []
            for table in self.tables.values():
                with self.root.open(table.file) as stream, hashed(stream) as (copy, digest):
                    rows = _length(READERS[table.kind].starts(copy, table))
                counted.append((digest.hexdigest(), rows))
            self._counted = counted
        return self._counted

    def signature(self) -> str:
        contents = [content for content, _ in self._count()]
        if len(contents) == 1:
            return contents[0]
        named = zip(self.tables, contents, strict=True)
        return hashlib.sha256("".join(f"{file}\0{content}\0" for file, content in named).encode()).hexdigest()

    def rows(self) -> int:
        return sum(rows for _, rows in self._count())

    def cuts(self, rows: int) -> Iterator[Cut]:
        for table in self.tables.values():
            with self.root.open(table.file) as stream:
                starts = READERS[table.kind].starts(stream, table)
                while (first := next(starts, None)) is not None:
                    yield Cut(table.file, 1 + _length(itertools.islice(starts, rows - 1)), first)

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        table = self.tables[shard.file]
        with self.root.open(shard.file) as stream:
            values = READERS[table.kind].values(stream, table, shard.offset)
            for row in itertools.islice(values, shard.span):
                yield row if isinstance(row, BadRow) else record_of(row, table)

    def fetch(self, image: str) -> None:
        return None


def record_of(values: dict[str, Any], table: RowFile) -> PairRecord:
    prompt, image, own = table.names
    path = values.get(image) if image is not None else None
    if isinstance(path, dict):  # {"path": ..., "bytes": null}, as the `datasets` library has it
        path = path.get("path")
    if table.base and isinstance(path, str) and path and not path.startswith("/") and "://" not in path:
        path = f"{table.base}/{path}"
    return PairRecord(values.get(prompt), path, table.names, values.get(own) if own else None, fields=values.keys())


def look(root: Store, file: str, wanted: set[str], rows: int = 100) -> Looks:
    """Read a file's first rows; `wanted` as of `Reader.shape`. Raises OSError."""
    with root.open(file) as stream:
        table = RowFile(file, encoding=encoding_of(stream.read(4)))
        try:
            shaped = READERS[table.kind].shape(stream, table, wanted)
            if isinstance(shaped, str):
                return Looks(table, problem=shaped)
            first = itertools.islice(READERS[shaped.kind].values(stream, shaped, 0), rows)
            good = [row for row in first if isinstance(row, dict)]
        except UserError as error:
            return Looks(table, problem=str(error))
    fields = dict.fromkeys(name for row in good for name in row)
    return Looks(shaped, list(shaped.columns) or list(fields), good)


def _length(items: Iterator[int]) -> int:
    """How many there are, in a loop that is not Python's: this counts the rows of a set."""
    counter = itertools.count()
    deque(zip(items, counter, strict=False), maxlen=0)
    return next(counter)


class _Hashing(io.RawIOBase):
    """Bytes of a stream, hashed as they pass."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset != self.stream.tell() or whence:
            raise io.UnsupportedOperation("what is hashed is read from start to end")
        return offset

    def tell(self) -> int:
        return self.stream.tell()

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        self.digest.update(content)
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def hashed(stream: io.BufferedIOBase) -> "Iterator[tuple[io.BufferedIOBase, Any]]":
    """A stream with the same bytes, read from start to end, and their SHA-256 once the block is left."""
    hashing = _Hashing(stream)
    with io.BufferedReader(hashing, BUFFER) as copy:
        yield copy, hashing.digest
        while copy.read(BUFFER):
            pass
