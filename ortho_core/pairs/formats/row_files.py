"""Files whose rows name their images by paths: JSON lines, CSV, JSON. One file, or several in order."""

import hashlib
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.delimited import Delimited
from ortho_core.pairs.formats.json_documents import CAPTIONS_KEY, ID_KEY, JsonDocuments, captions_by_image
from ortho_core.pairs.formats.json_lines import JsonLines, PromptLines
from ortho_core.pairs.formats.row_file import Reader, RowFile
from ortho_core.pairs.formats.text_lines import encoding_of
from ortho_core.pairs.instead import TELLING, instead
from ortho_core.pairs.rows import Cut, PairRecord, RecordsHaveAll, Shard
from ortho_core.storage.store import BUFFER, Store

#: Readers by suffix.
READERS: dict[str, Reader] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), JsonLines()),
    **dict.fromkeys((".csv", ".tsv"), Delimited()),
    ".json": JsonDocuments(),
    ".txt": PromptLines(),
}


@dataclass
class Looks:
    """The first rows of a file, and how it is read."""

    table: RowFile
    #: All fields of these rows, in order of first occurrence.
    fields: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    #: The reason why the file cannot be read.
    problem: str | None = None


class RowFiles(RecordsHaveAll):
    """Several RowFiles with the same kind of rows, in order."""

    def __init__(self, root: Store, tables: list[RowFile]) -> None:
        self.root = root
        self.tables = {table.file: table for table in tables}
        self._counted: list[tuple[str, int]] | None = None
        self._captions: tuple[str, dict[str, list[Any]]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_counted": None, "_captions": None}

    def _count(self) -> list[tuple[str, int]]:
        """SHA-256 and number of rows of each file, from one pass."""
        if self._counted is None:
            counted = []
            for table in self.tables.values():
                with self.root.open(table.file) as stream, hashed(stream) as (copy, digest):
                    rows = sum(map(len, READERS[table.kind].starts(copy, table)))
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
            start, first, seen = None, 0, 0
            with self.root.open(table.file) as stream:
                for starts in READERS[table.kind].starts(stream, table):
                    for at in range(-seen % rows, len(starts), rows):
                        if start is not None:
                            yield Cut(table.file, rows, start)
                        start, first = int(starts[at]), seen + at
                    seen += len(starts)
            if start is not None:
                yield Cut(table.file, seen - first, start)

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        table = self.tables[shard.file]
        with self.root.open(shard.file) as stream:
            values = READERS[table.kind].values(stream, table, shard.offset)
            if table.captions is not None:
                values = self._with_captions(table, values)
            for row in itertools.islice(values, shard.span):
                yield row if isinstance(row, BadRow) else record_of(row, table, self.root)

    def _with_captions(
        self, table: RowFile, values: Iterator[dict[str, Any] | BadRow]
    ) -> Iterator[dict[str, Any] | BadRow]:
        """The rows with their captions from the file's separate list, which is kept in memory."""
        if self._captions is None or self._captions[0] != table.file:
            with self.root.open(table.file) as stream:
                self._captions = table.file, captions_by_image(stream, table)
        captions = self._captions[1]
        for row in values:
            yield row if isinstance(row, BadRow) else {**row, CAPTIONS_KEY: captions.get(str(row.get(ID_KEY)), [])}

    def fetch(self, image: str) -> None:
        return None


def record_of(values: dict[str, Any], table: RowFile, root: Store) -> PairRecord:
    prompt, image, id_field = table.names
    path = values.get(image) if image is not None else None
    if isinstance(path, dict):  # {"path": ..., "bytes": null}, as the `datasets` library writes
        path = path.get("path")
    path, row_id = table.places.path(root, path), values.get(id_field) if id_field else None
    return PairRecord(values.get(prompt), path, table.names, row_id, fields=values.keys())


def look(root: Store, file: str, wanted: set[str], rows: int = 100) -> Looks:
    """Read a file's first `rows` rows; `wanted` is that of `Reader.shape`. Raises OSError."""
    with root.open(file) as stream:
        head = stream.read(TELLING)
        if (kind := instead(head)) is not None:
            return Looks(RowFile(file), problem=f"it is {kind}")
        table = RowFile(file, encoding=encoding_of(head[:4]))
        try:
            shaped = READERS[table.kind].shape(stream, table, wanted)
            if isinstance(shaped, str):
                return Looks(table, problem=shaped)
            first = list(itertools.islice(READERS[shaped.kind].values(stream, shaped, 0), rows))
        except UserError as error:
            return Looks(table, problem=str(error))
    # Captions in a separate list are not read here; an empty list shows that the field exists.
    separate: dict[str, Any] = {} if shaped.captions is None else {CAPTIONS_KEY: []}
    good = [{**row, **separate} for row in first if isinstance(row, dict)]
    if first and not good:
        return Looks(shaped, problem=f"none of its first rows can be read: {first[0]}")
    fields = dict.fromkeys(name for row in good for name in row)
    return Looks(shaped, list(shaped.columns) or list(fields), good)


class _Hashing(io.RawIOBase):
    """A stream whose bytes are hashed as they are read."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset < self.stream.tell() or whence:
            raise io.UnsupportedOperation("a hashed stream is read from start to end")
        while (left := offset - self.stream.tell()) > 0 and self.read(min(left, BUFFER)):
            pass
        return self.stream.tell()

    def tell(self) -> int:
        return self.stream.tell()

    def readinto(self, buffer: Any) -> int:
        count = self.stream.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        return count


@contextmanager
def hashed(stream: io.BufferedIOBase) -> "Iterator[tuple[io.BufferedIOBase, Any]]":
    """A copy of the stream, which must be read in order, and its SHA-256, which is complete after the block."""
    hashing = _Hashing(stream)
    with io.BufferedReader(hashing, BUFFER) as copy:
        yield copy, hashing.digest
        while copy.read(BUFFER):
            pass
