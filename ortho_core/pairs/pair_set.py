"""A pair set of any format, anywhere: which one it is, how it is cut into shards, how its images are fetched."""

import errno
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ortho_core.errors import BadRow, NoPairSet, UserError
from ortho_core.pairs.images import decode_image
from ortho_core.pairs.json_lines import JsonLines
from ortho_core.pairs.labelled.arrays import ClassArrays
from ortho_core.pairs.labelled.files import Split, find_class_files
from ortho_core.pairs.labelled.folders import ClassFolders, class_folders_of
from ortho_core.pairs.parquet import Parquet
from ortho_core.pairs.repeated_ids import repeated
from ortho_core.pairs.rows import Format, Pair, PairFields, Row, Shard, own_id
from ortho_core.pairs.web_dataset import WebDataset
from ortho_core.storage.open import open_store
from ortho_core.storage.store import OutsideRoot, Store, one_line

EXPECTED = (
    "a folder with pairs.jsonl, metadata.jsonl, .parquet or .tar files, one such file, a pattern such as DIR/*.tar, or "
    "labelled images (IDX files, CIFAR-10's binary batches or their PNG sheets, one folder per class)"
)
#: An image that cannot be read for a reason that may pass is tried again after these seconds.
RETRIES = (0.2, 1.0, 4.0)
#: Rows of a shard, where none are asked for: at least, at most, and the number of shards aimed at in between.
FEWEST, MOST, SHARDS = 64, 1024, 10_000


class PairSet:
    """A pair set at a path or URL. Small to send to another process: what was counted stays behind.

    Raises UserError if there is none, or if nothing here reads what there is.
    """

    def __init__(self, location: str | Path, fields: PairFields | None = None) -> None:
        self.fields = fields or PairFields()
        store = open_store(location)
        self.location = store.location
        with _told(self.location):
            self.root, self.format = _recognise(store, str(location), self.fields)
        #: Sorted numbers of rows whose id an earlier row has; known once the set is cut, where rows bring ids.
        self.repeated: np.ndarray | None = None
        self.image_root = open_store(self.fields.image_root) if self.fields.image_root else self.root

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the rows and the field names; image files count by their names."""
        with _told(self.location):
            content = f"{self.format.signature()}\0{self.fields.model_dump_json()}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def rows(self) -> int:
        """How many rows there are. Raises UserError if there are none."""
        with _told(self.location):
            rows = self.format.rows()
        if not rows:
            raise UserError(f"{self.location} holds no rows")
        return rows

    def rows_per_shard(self) -> int:
        """A size of shards that suits the set: neither too many files nor too much to do again."""
        return min(max(FEWEST, -(-self.rows() // SHARDS)), MOST)

    def shards(self, rows_per_shard: int) -> list[Shard]:
        """Cut the set into shards; depends on the input alone, memory grows with the shards, not the rows."""
        shards: list[Shard] = []
        first = 0
        with _told(self.location):
            for cut in self.format.cuts(rows_per_shard):
                shards.append(Shard(len(shards), first, cut.rows, cut.file, cut.offset))
                first += cut.rows
        if not shards:
            raise UserError(f"{self.location} holds no rows")
        if self.fields.id_field is not None and self.repeated is None:
            self.repeated = repeated(self._ids(shards))
        return shards

    def _ids(self, shards: list[Shard]) -> Iterator[tuple[int, str]]:
        """The ids that the rows bring, by row number; a row without a usable one is left out."""
        for shard in shards:
            for number, own in enumerate(self.format.ids(shard), shard.first):
                with suppress(BadRow):
                    yield number, own_id(number, own, self.fields.id_field)

    def read(self, shard: Shard) -> Iterator[Row]:
        """Each row of the shard as a Pair, or as (row number, what is wrong with it). Images are not looked at.

        Raises UserError if the shard's file has gone or has changed.
        """
        count = 0
        with _told(f"{self.root.location}/{shard.file}"):
            for row in self.format.read(shard):
                count += 1
                yield self._first_of_its_id(row)
        if count != shard.rows:
            raise UserError(
                f"{self.root.location}/{shard.file} has changed since the run began: {count} rows from "
                f"{shard.offset} on, not {shard.rows}"
            )

    def _first_of_its_id(self, row: Row) -> Row:
        """The row, or that an earlier one has its id."""
        if isinstance(row, tuple) or self.repeated is None:
            return row
        at = int(np.searchsorted(self.repeated, row.row))
        if at == len(self.repeated) or self.repeated[at] != row.row:
            return row
        return row.row, BadRow("duplicate-id", f"row {row.row}: an earlier row has the id {row.sample_id!r}")

    def fetch(self, pair: Pair) -> bytes:
        """The bytes of a pair's image. Raises BadRow as `fetch_image`."""
        return self.fetch_image(pair.image, f"row {pair.row}") if pair.content is None else pair.content

    def fetch_image(self, image: str, who: str) -> bytes:
        """The bytes of the image that a record names; `who` is what messages call the row.

        Raises BadRow if it is missing, outside the root, or cannot be read.
        """
        where = f"{who}: image {image[:200]!r}"
        for wait in (*RETRIES, None):
            try:
                content = self.format.fetch(image)
                if content is None:
                    content = self.image_root.read(self.image_root.contains(self._relative(image)))
                return content
            except OutsideRoot:
                root = self.image_root.location
                raise BadRow("outside-root", f"{where} lies outside {root} (--image-root names another)") from None
            except UserError:  # a bad row, or a file with many rows that is damaged
                raise
            except Exception as error:
                gone = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
                if isinstance(error, gone) or getattr(error, "errno", None) == errno.ENAMETOOLONG:
                    reason = "cannot be opened" if isinstance(error, PermissionError) else "does not exist"
                    raise BadRow("missing-image", f"{where} {reason} under {self.image_root.location}") from error
                if wait is None:  # time-outs, throttling, resets: what networks do
                    raise BadRow("unreadable-image", f"{where} cannot be read: {one_line(error)}") from error
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _relative(self, image: str) -> str:
        """A path as it is; a URL below the root, relative to it. Raises OutsideRoot for another URL."""
        if "://" not in image:
            return image
        inside = self.image_root.location + "/"
        if not image.startswith(inside):
            raise OutsideRoot(image)
        return image.removeprefix(inside)

    def images(self, chunk: Sequence[Pair], size: tuple[int, int]) -> list[np.ndarray | BadRow]:
        """Fetch and decode: for each pair (Y, X, 3) uint8, or what is wrong with it."""
        done: list[np.ndarray | BadRow] = []
        for pair in chunk:
            try:
                name = f"row {pair.row}: {pair.image.rpartition('/')[2]}"
                done.append(decode_image(self.fetch(pair), size, name))
            except BadRow as bad:
                done.append(bad)
        return done


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Turns what goes wrong at a place into a UserError; libraries of object stores raise their own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read {place}: {one_line(error) or type(error).__name__}") from error


def _recognise(store: Store, given: str, fields: PairFields) -> tuple[Store, Format]:
    """The folder that names are relative to, and the format. Raises UserError."""
    head, _, last = store.location.rpartition("/")
    parent = open_store(head or "/")
    if any(sign in last for sign in "*?["):
        import fnmatch

        found = [(name, size) for name, size in parent.find("") if "/" not in name and fnmatch.fnmatchcase(name, last)]
        return parent, _of_files(parent, found, given, fields)
    if not fields.with_images and last.endswith(".txt") and parent.exists(last):
        return parent, JsonLines(parent, last, fields)
    if last.endswith((".jsonl", ".parquet", ".tar")):
        if parent.exists(last):
            return parent, _of_files(parent, [(last, parent.size(last))], given, fields)
        if last.endswith(".jsonl"):
            raise NoPairSet(f"no pair set at {given}: it does not exist (expected: {EXPECTED})")
    for name in ("pairs.jsonl", "metadata.jsonl"):
        if store.exists(name):
            return store, JsonLines(store, name, fields)
    files = [*store.find(".parquet"), *store.find(".tar")]
    if not files and (labelled := _labelled(store, parent, last, fields)) is not None:
        return labelled
    return store, _of_files(store, files, given, fields)


def _labelled(store: Store, parent: Store, last: str, fields: PairFields) -> tuple[Store, Format] | None:
    """Labelled images. A set stands for its training split; `SET/train` and `SET/test` name a split of it."""
    if not fields.with_images:
        return None
    named: Split | None = "train" if last == "train" else "test" if last == "test" else None
    places: tuple[tuple[Store, Split | None], ...] = ((store, "train"), (parent, named))
    for root, split in places:
        if split is not None and (arrays := find_class_files(root, split)) is not None:
            return root, ClassArrays(root, arrays, fields)
    if folders := class_folders_of(store):
        return store, ClassFolders(store, folders, fields)
    inner = store.child("train")
    if folders := class_folders_of(inner):
        return inner, ClassFolders(inner, folders, fields)
    if named is not None:
        of_split = [(file, size) for file, size in parent.find(".parquet") if file.rpartition("/")[2].startswith(named)]
        return (parent, Parquet(parent, of_split, fields)) if of_split else None
    return None


def _of_files(root: Store, files: list[tuple[str, int]], given: str, fields: PairFields) -> Format:
    kinds = sorted({name.rpartition(".")[2] for name, _ in files})
    if len(kinds) > 1:
        raise UserError(
            f"{given} holds files of several kinds (.{', .'.join(kinds)}); name one, as in {root.location}/*.{kinds[-1]}"
        )
    if not kinds or kinds[0] not in ("jsonl", "parquet", "tar"):
        found = f"; found .{kinds[0]}" if kinds else ""
        raise NoPairSet(f"no pair set at {given}: expected {EXPECTED}{found}")
    if kinds == ["jsonl"]:
        if len(files) > 1:
            raise UserError(f"{given} matches {len(files)} .jsonl files; one is read at a time")
        return JsonLines(root, files[0][0], fields)
    return Parquet(root, files, fields) if kinds == ["parquet"] else WebDataset(root, files, fields)
