"""A pair set of any format, on disk or in an object store: recognise it, cut it into shards, and fetch its images."""

import copy
import errno
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import JsonValue

from ortho_core.errors import BadRow, UserError
from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.pairs.captions import captions_in
from ortho_core.pairs.cutting import cut
from ortho_core.pairs.formats.places import spellings
from ortho_core.pairs.hold_out import Part
from ortho_core.pairs.images import decode_framed
from ortho_core.pairs.recognise import recognise
from ortho_core.pairs.recognised import Recognised
from ortho_core.pairs.repeated_ids import repeated
from ortho_core.pairs.rows import Pair, PairFields, PairRecord, Row, Shard, make_pair, numbered_id, row_name
from ortho_core.storage.open import open_store
from ortho_core.storage.store import NotAFile, OutsideRoot, TooLarge, one_line

T = TypeVar("T")
WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
#: Waits in seconds before another try, if an image cannot be read for a reason that may be temporary.
RETRIES = (0.2, 1.0, 4.0)
#: Default rows per shard: smallest and largest number, and the target number of shards in between.
FEWEST, MOST, SHARDS = 64, 1024, 10_000


class PairSet:
    """A pair set at a path or URL. It is small when sent to another process: counts and listings are not sent.

    Raises UserError if there is no pair set, or none that can be read.
    """

    def __init__(self, location: str | Path, fields: PairFields | None = None) -> None:
        self.fields = fields or PairFields()
        store = open_store(location)
        self.location = store.location
        with _told(self.location):
            opened, recognised = recognise(store, str(location), self.fields)
        self.root, self.format = opened.root, opened.format
        #: How it is read, and which files are left aside; None in other processes.
        self.recognised: Recognised | None = recognised
        #: Sorted numbers of rows whose id an earlier row has; set when a set with ids is cut.
        self.repeated: np.ndarray | None = None
        self.image_root = open_store(self.fields.image_root) if self.fields.image_root else self.root
        self._rows: int | None = None
        self._part: Part | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "recognised": None, "_rows": None}

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the rows and the field names; image files count by their names."""
        # The choice of layout and split is not listed: it is in the signature of the chosen files.
        options = self.fields.model_dump_json(include={"prompt_field", "image_field", "id_field", "image_root"})
        if self.fields.caption is not None:
            options += f"\0{self.fields.caption}"
        if (part := self.part) is not None:
            options += f"\0{'training' if part.training else 'heldout'} {part.held}"
        with _told(self.location):
            content = f"{self.format.signature()}\0{options}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def part(self) -> Part | None:
        """The part of the records that is read; None: all. Raises UserError if there are too few records for it."""
        if self.fields.part is not None and self._part is None:
            self._part = Part.of(self.fields.part, self.records())
        return self._part

    def part_named(self, name: str | None) -> "PairSet":
        """A part of the same set, or all of it (`name` None)."""
        other = copy.copy(self)
        other.recognised = self.recognised  # copy.copy uses __getstate__, which drops it
        other.fields = self.fields.model_copy(update={"part": name})
        other.repeated = other._rows = other._part = None
        return other

    def spread(self, records: int) -> "PairSet":
        """A held-out part reduced to at most `records` records, evenly spread; any other set unchanged."""
        part = self.part
        if part is None or part.training or part.taken <= records:
            return self
        other = self.part_named(self.fields.part)
        other._part = replace(part, taken=records)
        return other

    def records(self) -> int:
        """Number of records of the whole set. Each record is a row, unless each caption is a row."""
        with _told(self.location):
            return self.format.rows()

    def rows(self) -> int:
        """Number of rows. Raises UserError if there are none."""
        if self._rows is None:
            with _told(self.location):
                if self.fields.caption == "all":
                    self._rows = sum(shard.rows for shard in self.shards(MOST))
                else:
                    self._rows = self.part.records if self.part is not None else self.format.rows()
        if not self._rows:
            raise UserError(f"{self.location} has no rows")
        return self._rows

    def line(self, count: bool = True) -> str:
        """How the set was recognised, in one line. `count` adds the number of rows, which requires a pass over some sets."""
        assert self.recognised is not None
        if self.fields.part is None:
            return self.recognised.line(self.rows() if count else None)
        counted = f": {self.counted()}" if count else ""
        return f"part {self.fields.part}{counted}; {self.recognised.line(None)}"

    def counted(self) -> str:
        """The number of rows of a part, and the total, in words."""
        assert self.part is not None
        rows, records, total = self.rows(), self.part.records, self.part.total
        if self.fields.caption == "all":
            return f"{rows} row{'' if rows == 1 else 's'}, the captions of {records} of {total} images"
        return f"{rows} of {total} rows"

    def record(self) -> dict[str, JsonValue]:
        """The content of `line` as JSON values."""
        assert self.recognised is not None
        return {**self.recognised.record(self.rows()), "part": self.fields.part}

    def rows_per_shard(self) -> int:
        """A shard size for this set that avoids both too many files and too much repeated work after a failure."""
        return min(max(FEWEST, -(-self.rows() // SHARDS)), MOST)

    def shards(self, rows_per_shard: int) -> list[Shard]:
        """Cut the set into shards. The result depends only on the input; memory grows with the shards, not with the rows."""
        with _told(self.location):
            shards = cut(self.format, rows_per_shard, self.part, self.fields.caption == "all")
        if not shards:
            raise UserError(f"{self.location} has no rows")
        if self.fields.id_field is not None and self.repeated is None:
            self.repeated = repeated(self._ids(shards))
        return shards

    def _ids(self, shards: list[Shard]) -> Iterator[tuple[int, str]]:
        """(row number, id) of all rows; a row without a usable id is left out."""
        for run in itertools.chain.from_iterable(shard.runs for shard in shards):
            prompts = self.format.prompts(run) if self.fields.caption == "all" else itertools.repeat(None)
            records = zip(self.format.ids(run), prompts, strict=False)
            for row, (value, _), number in self._numbered(run, records, lambda both: both[1]):
                with suppress(BadRow):
                    yield row, numbered_id(row, value, self.fields.id_field, number)

    def _numbered(self, run: Shard, records: Iterable[T], prompt: Callable[[T], Any]) -> Iterator[tuple[int, T, int]]:
        """(row number, record, number of the caption in the record) of each row of a piece."""
        if self.part is None and self.fields.caption != "all":
            yield from zip(range(run.first, run.first + run.rows), records, itertools.repeat(0), strict=False)
            return
        row, skip, left, first = run.first, run.skip, run.rows, run.first_record
        wanted = self.part.within(first, first + run.span) if self.part is not None else None
        for number, record in enumerate(records, first):
            copies = captions_in(prompt(record)) if self.fields.caption == "all" else 1
            if wanted is not None and not wanted(number):
                row += copies
                continue
            for caption in range(skip, copies):
                yield row, record, caption
                row, left = row + 1, left - 1
                if not left:
                    return
            skip = 0

    def read(self, shard: Shard) -> Iterator[Row]:
        """Each row of the shard as a Pair, or as (row number, fault). Images are not read.

        Raises UserError if the shard's file is missing or has changed.
        """
        for run in shard.runs:
            count = 0
            with _told(f"{self.root.location}/{run.file}"):
                for row, record, number in self._numbered(run, self.format.read(run), prompt_of):
                    count += 1
                    checked = self._row(row, record, number, run.file)
                    yield checked if self.repeated is None else self._first_of_its_id(checked)
            if count != run.rows:
                raise UserError(
                    f"{self.root.location}/{run.file} has changed since the run began: {count} rows from "
                    f"{run.offset} on, not {run.rows}"
                )

    def prompts(self, shard: Shard) -> Iterator[str]:
        """The prompts of the shard's rows, without reading images. Rows without a usable prompt are left out.

        Of a random caption the whole records are read, because the choice depends on the row's id. Raises UserError if the
        shard's file is missing.
        """
        if self.fields.caption == "random":
            yield from (row.prompt for row in self.read(shard) if isinstance(row, Pair))
            return
        caption, most = self.fields.caption, self.fields.max_prompt_length
        for run in shard.runs:
            with _told(f"{self.root.location}/{run.file}"):
                for row, value, number in self._numbered(run, self.format.prompts(run), lambda value: value):
                    record = PairRecord(value, None, ("prompt", None, None))
                    with suppress(BadRow):
                        yield make_pair(row, record, caption, number, most).prompt

    def _row(self, row: int, record: PairRecord | BadRow, number: int, file: str) -> Row:
        try:
            if isinstance(record, BadRow):
                raise BadRow(record.reason, f"row {row}: {record}", record.image)
            return make_pair(row, record, self.fields.caption, number, self.fields.max_prompt_length)
        except BadRow as bad:
            named = record.image if isinstance(record.image, str) else ""
            return row, BadRow(bad.reason, str(bad), named or file)

    def _first_of_its_id(self, row: Row) -> Row:
        """The row; or a fault, if an earlier row has its id."""
        assert self.repeated is not None
        if isinstance(row, tuple):
            return row
        at = int(np.searchsorted(self.repeated, row.row))
        if at == len(self.repeated) or self.repeated[at] != row.row:
            return row
        message = f"row {row.row}: an earlier row has the id {row.sample_id!r}"
        return row.row, BadRow("duplicate-id", message, row.image)

    def fetch(self, pair: Pair) -> bytes:
        """The bytes of a pair's image. Raises BadRow as `fetch_image`."""
        if pair.content is None:
            return self.fetch_image(pair.image, f"row {pair.row}")
        return self._within(pair.content, f"row {pair.row}: image {pair.image[:200]!r}")

    def _within(self, content: bytes, where: str) -> bytes:
        if len(content) > self.fields.max_image_bytes:
            raise self._too_large(where, len(content))
        return content

    def _too_large(self, where: str, size: int) -> BadRow:
        accepted = f"accepted: {self.fields.max_image_bytes} (--max-image-bytes raises the limit)"
        return BadRow("too-large", f"{where} has {size} bytes; {accepted}")

    def fetch_image(self, image: str, who: str) -> bytes:
        """The bytes of the image that a record names; `who` is the row's name in messages.

        Raises BadRow if it is missing, outside the root, or cannot be read.
        """
        where = f"{who}: image {image[:200]!r}"
        for wait in (*RETRIES, None):
            try:
                content = self.format.fetch(image)
                return self._within(self._read(image) if content is None else content, where)
            except TooLarge as error:
                raise self._too_large(where, error.size) from None
            except OutsideRoot:
                root = self.image_root.location
                raise BadRow("outside-root", f"{where} is outside {root} (--image-root names another folder)") from None
            except UserError:  # a bad row, or a damaged file with many rows
                raise
            except Exception as error:
                if isinstance(error, NotAFile) and not error.is_folder:  # a pipe or device, which may never end
                    raise BadRow("not-a-file", f"{where}: {error.strerror}") from error
                absent = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
                if isinstance(error, absent) or getattr(error, "errno", None) == errno.ENAMETOOLONG:
                    reason = "cannot be opened" if isinstance(error, PermissionError) else "does not exist"
                    raise BadRow("missing-image", f"{where} {reason} under {self.image_root.location}") from error
                if wait is None:  # network errors, such as time-outs, throttling and resets, were tried again
                    raise BadRow("unreadable-image", f"{where} cannot be read: {one_line(error)}") from error
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _read(self, image: str) -> bytes:
        """The file that a path or URL names, as written or in another system's spelling. Raises OutsideRoot or OSError."""
        missing: FileNotFoundError | None = None
        for name in spellings(self._relative(image)):
            try:
                return self.image_root.read_within(self.image_root.contains(name), self.fields.max_image_bytes)
            except FileNotFoundError as error:
                missing = missing or error
        assert missing is not None
        raise missing

    def _relative(self, image: str) -> str:
        """A path unchanged; a URL below the root, relative to it. Raises OutsideRoot for another URL, or a Windows drive."""
        if WINDOWS_DRIVE.match(image):
            raise OutsideRoot(image)
        if "://" not in image:
            return image
        inside = self.image_root.location + "/"
        if not image.startswith(inside):
            raise OutsideRoot(image)
        return image.removeprefix(inside)

    def images(self, chunk: Sequence[Pair], size: tuple[int, int]) -> list[np.ndarray | BadRow]:
        """Fetch and decode the images at one size: for each pair (Y, X, 3) uint8, or the fault."""
        return [one if isinstance(one, BadRow) else one[0] for one in self.framed(chunk, Framing.at(size))]

    def framed(self, chunk: Sequence[Pair], framing: Framing) -> list[tuple[np.ndarray, Frame] | BadRow]:
        """Fetch and decode the images: for each pair (Y, X, 3) uint8 and its frame, or the fault."""
        done: list[tuple[np.ndarray, Frame] | BadRow] = []
        for pair in chunk:
            try:
                name = f"row {pair.row}: {row_name(pair.image, pair.sample_id)}"
                content = self.fetch(pair)
                done.append(decode_framed(content, framing, pair.sample_id, name, self.fields.max_image_pixels))
            except BadRow as bad:
                done.append(bad)
        return done


def prompt_of(record: PairRecord | BadRow) -> Any:
    return None if isinstance(record, BadRow) else record.prompt


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Turn any error of the block into a UserError; libraries of object stores raise their own kinds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read {place}: {one_line(error) or type(error).__name__}") from error
