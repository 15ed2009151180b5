"""Arrow files as the `datasets` library writes them. A file is a sequence of messages: the schema, then batches of rows.

The headers of the messages are read here, to find a batch without reading earlier ones; pyarrow reads the contents.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any

import pyarrow as pa

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.columns import class_as_text, class_names, columns_of, record_of, value_of
from ortho_core.pairs.formats.parquet import RowGroup, RowGroups
from ortho_core.pairs.instead import said_of
from ortho_core.pairs.rows import Cut, Names, PairFields, PairRecord, Shard
from ortho_core.storage.store import Store

#: The first bytes of a file in the variant with an index at its end; and their length with padding.
MAGIC, MAGIC_BYTES = b"ARROW1", 8
CONTINUED = 0xFFFFFFFF
#: Kinds of messages.
SCHEMA_MESSAGE, DICTIONARY_MESSAGE, BATCH_MESSAGE = 1, 2, 3


class Index:
    """The batches of a file: their byte offsets, and the numbers of their first rows."""

    def __init__(self, stream: BufferedIOBase, file: str) -> None:
        """Reads the headers of all messages. Raises UserError, naming the file, if it cannot be read."""
        digest, self.offsets, self.firsts, self.rows = hashlib.sha256(), [], [], 0
        self.schema: pa.Schema | None = None
        size = stream.seek(0, 2)
        stream.seek(0)
        at = MAGIC_BYTES if stream.read(len(MAGIC)) == MAGIC else 0
        while (head := _head(stream, at)) is not None:
            start, metadata = head
            kind, body, rows = _message(metadata)
            if start + len(metadata) + body > size or kind == DICTIONARY_MESSAGE:
                fault = (
                    "has dictionary columns, which are not supported" if kind == DICTIONARY_MESSAGE else "is truncated"
                )
                raise UserError(f"{file} {fault}")
            if kind == SCHEMA_MESSAGE:
                stream.seek(at)
                self.schema = pa.ipc.read_schema(pa.BufferReader(stream.read(start - at + len(metadata))))
            elif kind == BATCH_MESSAGE:
                self.offsets.append(at)
                self.firsts.append(self.rows)
                self.rows += rows
            digest.update(metadata)
            at = start + len(metadata) + body
        if self.schema is None:
            raise UserError(f"{file} is not an Arrow file: it has no schema")
        self.digest = digest.hexdigest()[:16]

    def batch_of(self, row: int) -> int:
        return bisect_right(self.firsts, row) - 1

    def read(self, stream: BufferedIOBase, number: int) -> pa.RecordBatch:
        stream.seek(self.offsets[number])
        end = self.offsets[number + 1] if number + 1 < len(self.offsets) else None
        content = stream.read() if end is None else stream.read(end - self.offsets[number])
        return pa.ipc.read_record_batch(pa.ipc.read_message(pa.BufferReader(content)), self.schema)


class ArrowFiles:
    """One or more files with the same columns. A record names image bytes as `FILE#ROW`."""

    def __init__(self, root: Store, files: list[tuple[str, int]], fields: PairFields, state: str = "") -> None:
        """`files` are names and sizes in bytes, in order; `state` is a text that changes with the content."""
        self.root, self.files, self.fields, self.state = root, files, fields, state
        self._indices: dict[str, Index] = {}
        self._groups = RowGroups(self._read_images)
        #: The columns of the last batch that planning has read: one of prompts and one of ids.
        self._columns: dict[int, tuple[tuple[str, int, str], pa.Array]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": [], "_indices": {}, "_groups": None, "_columns": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_groups": RowGroups(self._read_images)}

    def _index(self, file: str) -> Index:
        if file not in self._indices:
            where = f"{self.root.location}/{file}"
            try:
                with self.root.open(file) as stream:
                    self._indices[file] = Index(stream, where)
            except (OSError, struct.error, pa.ArrowException) as error:
                raise UserError(f"{where} is not a readable Arrow file: {said_of(self.root, file, error)}") from error
            self._names(file)
        return self._indices[file]

    def _names(self, file: str) -> Names:
        return columns_of(self._indices[file].schema, self.fields, file)

    def signature(self) -> str:
        digest = hashlib.sha256(self.state.encode())
        for name, size in self.files:
            digest.update(f"{name}\0{size}\0{self._index(name).rows}\0{self._index(name).digest}\0".encode())
        return digest.hexdigest()

    def rows(self) -> int:
        return sum(self._index(file).rows for file, _ in self.files)

    def cuts(self, rows: int) -> Iterator[Cut]:
        for file, _ in self.files:
            total = self._index(file).rows
            for offset in range(0, total, rows):
                yield Cut(file, min(rows, total - offset), offset)

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        self._index(shard.file)
        names = self._names(shard.file)
        classes = class_names(self._indices[shard.file].schema, names[0])
        columns = [name for name in names if name is not None]
        for row, batch, i in self._rows(shard):
            try:
                values = {name: value_of(batch[name][i], name) for name in columns}
                values[names[0]] = class_as_text(values[names[0]], classes)
                yield record_of(values, names, f"{shard.file}#{row}")
            except BadRow as bad:
                yield bad

    def prompts(self, shard: Shard) -> Iterator[Any]:
        return self._column(shard, 0)

    def ids(self, shard: Shard) -> Iterator[Any]:
        return self._column(shard, 2)

    def _column(self, shard: Shard, which: int) -> Iterator[Any]:
        """The values of column `which` of `_names`. For shards in order, each batch is read once."""
        index = self._index(shard.file)
        name = str(self._names(shard.file)[which])
        row, end = shard.offset, min(shard.offset + shard.span, index.rows)
        while row < end:
            number = index.batch_of(row)
            key = shard.file, number, name
            if (kept := self._columns.get(which)) is None or kept[0] != key:
                kept = self._columns[which] = key, self._read_column(*key)
            part = kept[1].slice(row - index.firsts[number], end - row)
            row += len(part)
            for scalar in part:
                try:
                    yield value_of(scalar, name)
                except BadRow:
                    yield None

    def _read_column(self, file: str, number: int, name: str) -> pa.Array:
        with self.root.open(file) as stream:
            column = self._index(file).read(stream, number)[name]
        return column.take(pa.array(range(len(column))))  # a copy, so that the batch's other columns (images) are freed

    def _rows(self, shard: Shard) -> Iterator[tuple[int, pa.RecordBatch, int]]:
        """(number in the file, batch, number in the batch) of each row of the shard. One batch is in memory at a time."""
        index, row = self._index(shard.file), shard.offset
        end = min(shard.offset + shard.span, index.rows)
        with self.root.open(shard.file) as stream:
            while row < end:
                number = index.batch_of(row)
                batch = index.read(stream, number)
                for i in range(row - index.firsts[number], min(len(batch), end - index.firsts[number])):
                    yield row, batch, i
                    row += 1

    def fetch(self, image: str) -> bytes | None:
        """Reads the batch of the row that `FILE#ROW` names, and keeps it for later calls."""
        return self._groups.image(image, ".arrow")

    def _read_images(self, file: str, row: int, known: Any) -> RowGroup:
        if not self.root.exists(file):
            raise FileNotFoundError(file)
        index = self._index(file)
        if row >= index.rows:
            raise BadRow("missing-image", f"{file} has no row {row}")
        number = index.batch_of(row)
        with self.root.open(file) as stream:
            column = index.read(stream, number)[str(self._names(file)[1])]
        return RowGroup(file, index.firsts[number], pa.chunked_array([column]), None)


def _head(stream: BufferedIOBase, at: int) -> tuple[int, bytes] | None:
    """Offset and content of the metadata of the message at `at`; None at the end of the messages."""
    stream.seek(at)
    head = stream.read(8)
    if len(head) < 8:
        return None
    first, second = struct.unpack("<II", head)
    start, length = (at + 8, second) if first == CONTINUED else (at + 4, first)  # before Arrow 0.15 there was no marker
    if not length:
        return None
    stream.seek(start)
    return start, stream.read(length)


def _message(metadata: bytes) -> tuple[int, int, int]:
    """Kind, body size in bytes and number of rows (0 unless a batch), from a flatbuffer of Arrow's table `Message`."""
    (message,) = struct.unpack_from("<I", metadata)
    kind, header, body = (_field(metadata, message, number) for number in (1, 2, 3))
    if kind is None or header is None:
        return 0, 0, 0
    (length,) = struct.unpack_from("<q", metadata, body) if body is not None else (0,)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    rows = _field(metadata, batch, 0) if metadata[kind] == BATCH_MESSAGE else None
    return metadata[kind], length, struct.unpack_from("<q", metadata, rows)[0] if rows is not None else 0


def _field(buffer: bytes, table: int, number: int) -> int | None:
    """Offset of a field of a flatbuffer's table; None if the field is absent."""
    places = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, places)
    at = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", buffer, places + at) if at < size else (0,)
    return table + offset if offset else None
