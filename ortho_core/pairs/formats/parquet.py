"""Parquet: a prompt column, and an image column of bytes, of `{bytes, path}` structs (as the `datasets` library writes), or of
paths and URLs. A column of class numbers can be the prompt column: prompts are the class names that the `datasets` library
stores, else the numbers."""

import hashlib
import itertools
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.columns import (
    class_as_text,
    class_names,
    columns_of,
    record_of,
    value_of,
    values_of,
)
from ortho_core.pairs.formats.places import AS_WRITTEN, Places
from ortho_core.pairs.instead import said_of
from ortho_core.pairs.rows import Cut, Names, PairFields, PairRecord, Shard
from ortho_core.storage.store import Store, plain_name

#: Number of footers that are read in parallel, because object stores have latency.
FOOTERS_AT_ONCE = 32
#: Rows per batch read from a file; their images are in memory.
ROWS_AT_ONCE = 32
#: Bytes of image columns of row groups that are kept in memory.
GROUPS_BYTES = 1 << 30


class Parquet:
    """One or more files with the same columns."""

    def __init__(
        self, root: Store, files: list[tuple[str, int]], fields: PairFields, places: Mapping[str, Places] | None = None
    ) -> None:
        """`files` are names and sizes in bytes, in order; `places` are the places of the images, by the files' folder."""
        self.root, self.fields, self.places = root, fields, places or {}
        self.files: list[tuple[str, int]] = files
        self._footers: list[tuple[int, str]] | None = None
        self._groups = RowGroups(self._read_images)
        #: What planning has read last: a footer, and the columns of a row group, one of prompts and one of ids.
        self._last: tuple[str, pq.FileMetaData, list[int]] | None = None
        self._columns: dict[int, tuple[tuple[str, int, str], pa.ChunkedArray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": [], "_footers": None, "_groups": None, "_last": None, "_columns": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_groups": RowGroups(self._read_images)}

    def _read_footers(self) -> list[tuple[int, str]]:
        """Number of rows and digest of each file's footer, which is not kept. Raises UserError naming a damaged file.

        A footer has the sizes of the columns in each row group and, from most writers, their smallest and largest values.
        """

        def read(file: str) -> tuple[int, str]:
            try:
                with self.root.open(file) as stream:
                    footer = pq.read_metadata(stream)
                    stream.seek(-8 - footer.serialized_size, os.SEEK_END)
                    digest = hashlib.sha256(stream.read()).hexdigest()[:16]
            except (OSError, pa.ArrowException) as error:
                raise UserError(
                    f"{self.root.location}/{file} is not a readable Parquet file: {said_of(self.root, file, error)}"
                ) from error
            self._names(footer.schema.to_arrow_schema(), file)
            return footer.num_rows, digest

        if self._footers is None:
            with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
                self._footers = list(pool.map(read, [file for file, _ in self.files]))
        return self._footers

    def _names(self, schema: pa.Schema, file: str) -> Names:
        return columns_of(schema, self.fields, file)

    def signature(self) -> str:
        digest = hashlib.sha256()
        for (name, size), (rows, footer) in zip(self.files, self._read_footers(), strict=True):
            digest.update(f"{name}\0{size}\0{rows}\0{footer}\0".encode())
        return digest.hexdigest()

    def rows(self) -> int:
        return sum(rows for rows, _ in self._read_footers())

    def cuts(self, rows: int) -> Iterator[Cut]:
        for (file, _), (total, _) in zip(self.files, self._read_footers(), strict=True):
            for offset in range(0, total, rows):
                yield Cut(file, min(rows, total - offset), offset)

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        """Reads the shard's row groups from their start; row groups with image bytes should have at most a few hundred rows."""
        places = self.places.get(shard.file.rpartition("/")[0], AS_WRITTEN)
        path_of = partial(places.path, self.root) if places != AS_WRITTEN else None
        with self.root.open(shard.file) as stream:
            parquet = pq.ParquetFile(stream, pre_buffer=False)
            names = self._names(parquet.schema_arrow, shard.file)
            groups, skip = groups_of(parquet.metadata, shard.offset, shard.span)
            columns = [name for name in names if name is not None]
            classes = class_names(parquet.schema_arrow, names[0])
            left = shard.span
            for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns):
                part = batch.slice(skip, left)
                skip = max(0, skip - len(batch))
                if not len(part):
                    continue
                in_file = shard.offset + shard.span - left
                rows = zip(*(values_of(part[name], name) for name in columns), strict=True)
                for number, row in enumerate(rows, in_file):
                    bad = next((value for value in row if isinstance(value, BadRow)), None)
                    values = dict(zip(columns, row, strict=True))
                    values[names[0]] = class_as_text(values[names[0]], classes)
                    yield bad or record_of(values, names, f"{shard.file}#{number}", path_of)
                left -= len(part)
                if not left:
                    return

    def prompts(self, shard: Shard) -> Iterator[Any]:
        return self._column(shard, 0)

    def ids(self, shard: Shard) -> Iterator[Any]:
        return self._column(shard, 2)

    def _column(self, shard: Shard, which: int) -> Iterator[Any]:
        """The values of column `which` of `_names`. For shards in order, each row group is read once."""
        footer, firsts = self._footer_of(shard.file)
        name = str(self._names(footer.schema.to_arrow_schema(), shard.file)[which])
        row, end = shard.offset, min(shard.offset + shard.span, footer.num_rows)
        while row < end:
            group = bisect_right(firsts, row) - 1
            key = shard.file, group, name
            if (kept := self._columns.get(which)) is None or kept[0] != key:
                kept = self._columns[which] = key, self._read_column(*key, footer)
            part = kept[1].slice(row - firsts[group], end - row)
            row += len(part)
            for scalar in part:
                try:
                    yield value_of(scalar, name)
                except BadRow:
                    yield None

    def _footer_of(self, file: str) -> tuple[pq.FileMetaData, list[int]]:
        """A file's footer and the first row number of each row group; those of the last file are cached."""
        if self._last is None or self._last[0] != file:
            with self.root.open(file) as stream:
                footer = pq.read_metadata(stream)
            sizes = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
            self._last = file, footer, [0, *itertools.accumulate(sizes)][:-1]
        return self._last[1:]

    def _read_column(self, file: str, group: int, name: str, footer: pq.FileMetaData) -> pa.ChunkedArray:
        with self.root.open(file) as stream:
            return (
                pq.ParquetFile(stream, metadata=footer, pre_buffer=False)
                .read_row_group(group, columns=[name])
                .column(0)
            )

    def fetch(self, image: str) -> bytes | None:
        """Reads the row group of the row that `FILE#ROW` names, and keeps it for later calls."""
        return self._groups.image(image, ".parquet")

    def _read_images(self, file: str, row: int, footer: pq.FileMetaData | None) -> "RowGroup":
        """The image column of the row group that contains a row."""
        with self.root.open(file) as stream:
            parquet = pq.ParquetFile(stream, metadata=footer, pre_buffer=False)
            name = self._names(parquet.schema_arrow, file)[1]
            groups, skip = groups_of(parquet.metadata, row, 1)
            if not groups:
                raise BadRow("missing-image", f"{file} has no row {row}")
            column = parquet.read_row_group(groups[0], columns=[name])[name]
            return RowGroup(file, row - skip, column, parquet.metadata)


@dataclass(frozen=True, eq=False)
class RowGroup:
    """One column of a row group of a file; its first row is number `first`."""

    file: str
    first: int
    column: pa.ChunkedArray
    #: The file's footer, reused to read another group of the same file.
    footer: Any


class RowGroups:
    """A cache of recently used row groups: training reads rows from several places of a file in turn."""

    def __init__(self, read: Callable[[str, int, Any], RowGroup]) -> None:
        self._read = read
        #: The most recently used is last.
        self._kept: list[RowGroup] = []
        self._lock = threading.Lock()

    def image(self, image: str, suffix: str) -> bytes | None:
        """The image bytes of the row that `FILE#ROW` names; None if `image` has another form. Raises BadRow if there are none."""
        file, sign, row = image.rpartition("#")
        if not sign or not row.isdecimal() or not file.endswith(suffix):
            return None
        value = self.value(plain_name(file), int(row))
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise BadRow("missing-image", f"{image} contains no image bytes")
        return content

    def value(self, file: str, row: int) -> Any:
        """One row's value. Threads wait for each other, so that a group is not read twice."""
        with self._lock:
            group = next((g for g in self._kept if g.file == file and 0 <= row - g.first < len(g.column)), None)
            if group is None:
                footer = next((g.footer for g in self._kept if g.file == file), None)
                group = self._read(file, row, footer)
            else:
                self._kept.remove(group)
            self._kept.append(group)
            while len(self._kept) > 1 and sum(g.column.nbytes for g in self._kept) > GROUPS_BYTES:
                del self._kept[0]
        return group.column[row - group.first].as_py()


def groups_of(footer: pq.FileMetaData, first: int, rows: int) -> tuple[list[int], int]:
    """The row groups with rows `first` to `first + rows - 1` of a file, and the number of rows to skip in the first."""
    groups: list[int] = []
    skip = start = 0
    for group in range(footer.num_row_groups):
        end = start + footer.row_group(group).num_rows
        if end > first and start < first + rows:
            if not groups:
                skip = first - start
            groups.append(group)
        start = end
    return groups, skip
