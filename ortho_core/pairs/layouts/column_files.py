"""Parquet files, and the Arrow files that the `datasets` library writes to disk."""

import re
import struct
from collections.abc import Collection, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ortho_core.errors import NoPairSet, UserError
from ortho_core.pairs.formats.arrow import ArrowFiles, Index
from ortho_core.pairs.formats.columns import METADATA_PARQUET, columns_of, holds_bytes
from ortho_core.pairs.formats.parquet import Parquet
from ortho_core.pairs.formats.places import PROBED, Places
from ortho_core.pairs.layouts.layout import Opened, Reading, no_images_found, of_split, own_places, places_in
from ortho_core.pairs.listing import Listing, count, some
from ortho_core.pairs.names import CLASS_NAMES, USUAL_PROMPTS, plain, usual
from ortho_core.pairs.rows import LayoutName, PairFields
from ortho_core.pairs.splits import split_of
from ortho_core.text.parsing import NotParsedError, json_object

OPTIONS = frozenset({"prompt_field", "image_field", "id_field", "image_root", "caption", "split"})


class ParquetSets:
    name: LayoutName = "parquet"
    what = "Parquet files"
    options = OPTIONS

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        files, _ = _rows_and_lists(listing)
        return Reading(self.name, count(len(files), ".parquet file"), _several_sets(files, fields)) if files else None

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        named, lists = _rows_and_lists(listing)
        sized = [file for file in listing.of(".parquet") if file[0] in named]
        if not sized:
            raise NoPairSet(f"no .parquet file of pairs in {listing.root.location}: found {listing.inventory()}")
        files, notes = of_split(sized, lambda file: file[0], fields.split, listing.root.location)
        format, prompts, more = open_parquet(listing, files, fields)
        aside = [f"{count(len(lists), '.parquet file')} (img2dataset's lists of its files)"] if lists else []
        what = f"Parquet, {_counted(files)}"
        return Opened(listing.root, format, what, prompts, notes + more, aside)


class ArrowSets:
    name: LayoutName = "arrow"
    what = "Arrow files"
    options = OPTIONS

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        files = _arrow_files(listing)
        return Reading(self.name, count(len(files), ".arrow file"), _several_sets(files, fields)) if files else None

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        named = _arrow_files(listing)
        sized = [file for file in listing.of(".arrow") if file[0] in named]
        if not sized:
            raise NoPairSet(f"no .arrow file of pairs in {listing.root.location}: found {listing.inventory()}")
        files, notes = of_split(sized, lambda file: file[0], fields.split, listing.root.location)
        prompts, more = _columns(_arrow_schema(listing, [file for file, _ in files]), fields)
        rest = len(listing.names_of(".arrow")) - len(named)
        aside = [f"{count(rest, '.arrow file')} (the `datasets` library's cache)"] if rest else []
        format = ArrowFiles(listing.root, files, fields, _state(listing, [file for file, _ in files]))
        what = f"Arrow of the `datasets` library, {_counted(files)}"
        return Opened(listing.root, format, what, prompts, notes + more, aside)


def _counted(files: list[tuple[str, int]]) -> str:
    folders = len({name.rpartition("/")[0] for name, _ in files})
    return count(len(files), "file") + (f" in {folders} folders" if folders > 1 else "")


def open_parquet(listing: Listing, files: list[tuple[str, int]], fields: PairFields) -> tuple[Parquet, str, list[str]]:
    """The files as a format, the source of the prompts, and notes."""
    schema = _parquet_schema(listing, [file for file, _ in files])
    prompts, notes = _columns(schema, fields)
    places: dict[str, Places] = {}
    more: list[str] = []
    for folder, file in {file.rpartition("/")[0]: file for file, _ in reversed(files)}.items():
        if fields.image_root is not None or schema is None or (paths := _first_paths(listing, file, fields)) is None:
            continue
        place = places_in(listing, file, paths)
        if place is None:
            more.append(no_images_found(file, paths))
        elif place.base != folder:
            more.append(f"these in {place.base or '.'}/")
        places[folder] = place or own_places(file if file.endswith(METADATA_PARQUET) else "")
    return Parquet(listing.root, files, fields, places), prompts, notes + more[:1]


def _first_paths(listing: Listing, file: str, fields: PairFields) -> list[Any] | None:
    """The image paths of the first rows; None if the column has image bytes, or if the file cannot be read."""
    try:
        with listing.root.open(file) as stream:
            parquet = pq.ParquetFile(stream)
            image = columns_of(parquet.schema_arrow, fields, file)[1]
            if image is None or holds_bytes(parquet.schema_arrow.field(image).type):
                return None
            first = next(parquet.iter_batches(PROBED, columns=[image]), None)
            return None if first is None else first.column(0).to_pylist()
    except (OSError, IndexError, ValueError, pa.ArrowException, UserError):
        return None


def _several_sets(files: list[str], fields: PairFields) -> tuple[str, ...]:
    """A reason against reading all files: several folders have a first part, `train-00000-of-00002`, of the same split. They are
    probably configurations of one set.
    """
    by_split: dict[str | None, list[str]] = {}
    for name in files:
        if re.search(r"-0+-of-[0-9]+[^/]*$", name):
            by_split.setdefault(split_of(name), []).append(name.rpartition("/")[0] or ".")
    several = next((folders for folders in by_split.values() if len(set(folders)) > 1), None)
    if several is None or fields.split is not None:
        return ()
    where = some([f"{folder}/" for folder in several])
    return (f"{where} each contain a complete set: name one, as in --pairs .../{several[0]}",)


def _rows_and_lists(listing: Listing) -> tuple[list[str], list[str]]:
    """Parquet files of rows, and those that img2dataset writes beside a folder or tar file of the same name."""
    files = [name for name in listing.names_of(".parquet") if name.rpartition("/")[2] != METADATA_PARQUET]
    paired = {name.removesuffix(".tar") for name in listing.names_of(".tar")} | {f.path for f in listing.folders}
    lists = [name for name in files if name.removesuffix(".parquet") in paired]
    return [name for name in files if name not in set(lists)], lists


def _arrow_files(listing: Listing) -> list[str]:
    return [name for name in listing.names_of(".arrow") if not name.rpartition("/")[2].startswith(("cache-", "tmp"))]


def _state(listing: Listing, files: Collection[str]) -> str:
    """The fingerprints that the `datasets` library writes beside the files: they change with the content."""
    folders = {name.rpartition("/")[0] for name in files}
    fingerprints = []
    for name in listing.names_of(".json"):
        folder, _, base = name.rpartition("/")
        if base == "state.json" and folder in folders:
            try:
                fingerprints.append(str(json_object(listing.root.read(name), name)["_fingerprint"]))
            except (OSError, NotParsedError, KeyError):
                continue
    return " ".join(fingerprints)


def _parquet_schema(listing: Listing, files: list[str]) -> pa.Schema | None:
    """The schema of the first file; None if it cannot be read, which is reported when the rows are counted."""
    try:
        with listing.root.open(files[0]) as stream:
            return pq.read_schema(stream)
    except (OSError, IndexError, pa.ArrowException):
        return None


def _arrow_schema(listing: Listing, files: list[str]) -> pa.Schema | None:
    try:
        with listing.root.open(files[0]) as stream:
            return Index(stream, files[0]).schema
    except (OSError, IndexError, struct.error, pa.ArrowException, UserError):
        return None


def _columns(schema: pa.Schema | None, fields: PairFields) -> tuple[str, list[str]]:
    """The source of the prompts, and notes on the columns."""
    if schema is None:
        return "captions from a column", []
    try:
        prompt, image, _ = columns_of(schema, fields, "")
    except UserError:
        return "captions from a column", []
    notes = [] if image is None else [f"images from column {image}"]
    if image is not None and (others := [n for n in schema.names if n != image and holds_bytes(schema.field(n).type)]):
        notes.append(f"columns {', '.join(others)} contain images too, and are not read")
    notes += other_prompts(schema.names, prompt, fields)
    kind = schema.field(prompt).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        notes.append(said_choice(fields))
    return f"captions from column {prompt}", notes


def other_prompts(names: Iterable[str], prompt: str, fields: PairFields) -> list[str]:
    """A note on fields that might also be the prompt."""
    others = [
        name for name in usual(names, (*USUAL_PROMPTS, "tags")) if name != prompt and plain(name) not in CLASS_NAMES
    ]
    verb = "is" if len(others) == 1 else "are"
    return [f"there {verb} also {', '.join(others)} (--prompt-field)"] if others and fields.prompt_field is None else []


def said_choice(fields: PairFields) -> str:
    if fields.caption is None:
        return "the first of several captions is used (--caption chooses)"
    return f"choice among several captions: {fields.caption}"
