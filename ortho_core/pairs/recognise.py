"""Recognise the pair set at a place: a file, a folder, the files that match a pattern, or a split of a set.

A folder is walked once. Each layout reports a reading, what it could read there, and the reasons against it. If exactly one
reading has no reason against it, it is used; else an error lists the readings with the option that selects each.
"""

import fnmatch
from dataclasses import replace
from pathlib import PurePosixPath

from ortho_core.errors import NoPairSet, UserError
from ortho_core.pairs.formats.columns import METADATA_PARQUET
from ortho_core.pairs.layouts import LAYOUTS, Layout, Opened, Reading
from ortho_core.pairs.layouts.layout import check_options, left_aside
from ortho_core.pairs.layouts.metadata import PAIRS, why_not
from ortho_core.pairs.listing import COLUMN_SUFFIXES, COMPRESSED, TABLE_SUFFIXES, Listing, scan
from ortho_core.pairs.own_folders import own_folder
from ortho_core.pairs.recognised import Recognised
from ortho_core.pairs.rows import LayoutName, PairFields
from ortho_core.pairs.splits import SPLITS, wanted
from ortho_core.storage.open import open_store
from ortho_core.storage.store import Store

EXPECTED = (
    "a folder or file of rows (pairs.jsonl, metadata.jsonl, .parquet or .tar files, .csv, .json, .arrow), images with "
    "caption files beside them, images with --prompt, labelled images (IDX files, CIFAR-10's binary batches or their PNG "
    "sheets, one folder per class), or a pattern such as DIR/*.tar"
)
EXPECTED_PROMPTS = (
    "a text file with one prompt per line, a file of rows with a field `prompt` (.jsonl, .csv, .json, .parquet, .arrow), or a "
    "pair set"
)
BY_NAME: dict[LayoutName, Layout] = {layout.name: layout for layout in LAYOUTS}
#: The layout for a single file, by suffix.
BY_SUFFIX: dict[str, LayoutName] = {
    **dict.fromkeys(TABLE_SUFFIXES, "metadata"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
}


def recognise(store: Store, given: str, fields: PairFields) -> tuple[Opened, Recognised]:
    """Open the pair set at a place; `given` is the place as the user wrote it. Raises UserError; NoPairSet if there is none."""
    head, _, last = store.location.rpartition("/")
    parent = open_store(head or "/")
    if parent.exists(last):
        return _open(_layout_of_file(last, given, fields), _files(parent, {last: None}), fields)
    if store.exists(PAIRS) and fields.layout in (None, "metadata") and fields.split is None:
        _refuse_own(store, given)
        return _open(BY_NAME["metadata"], _files(store, {PAIRS: None}), fields)
    listing = scan(store)
    kind, expected = ("pair set", EXPECTED) if fields.with_images else ("file of prompts", EXPECTED_PROMPTS)
    nothing = NoPairSet(f"no {kind} at {given}: it does not exist (expected: {expected})")
    if listing.seen or listing.own or listing.unreadable:
        if "" in listing.own:
            raise UserError(f"{given} is {listing.own['']}, not a pair set")
        try:
            return _open(decide(listing, given, fields), listing, fields)
        except NoPairSet as error:
            nothing = error
    elif any(sign in last for sign in "*?["):
        top = next(iter(parent.walk()), None)
        files = {} if top is None else top.files
        matching = {name: files[name] for name in files if fnmatch.fnmatchcase(name, last) and not name.startswith(".")}
        return _open(_layout_of_files(matching, parent, given), _files(parent, matching), fields)
    if fields.split is None and wanted(last) in SPLITS and fields.layout is None:
        # Not a folder: perhaps a split of a set whose files are all in one folder.
        above = scan(parent)
        if above.labelled or above.files:
            fields = fields.model_copy(update={"split": last})
            return _open(decide(above, head, fields), above, fields)
    raise nothing


def decide(listing: Listing, given: str, fields: PairFields) -> Layout:
    """The layout of a folder. Raises UserError, naming the readings, if there are several, NoPairSet if there is none."""
    if fields.layout is not None:
        return BY_NAME[fields.layout]
    possible = [reading for layout in LAYOUTS if (reading := layout.recognise(listing, fields)) is not None]
    stated = tuple(f"there {_are(reading.what)} {reading.what}" for reading in possible if reading.stated)
    readings = [
        reading if reading.stated else replace(reading, against=reading.against + stated) for reading in possible
    ]
    free = [reading for reading in readings if not reading.against]
    if len(free) == 1:
        return BY_NAME[free[0].layout]
    contents = ", ".join([f"found {listing.inventory()}", *left_aside(listing)])
    archives = sorted(suffix for suffix in listing.suffixes if suffix in COMPRESSED)
    reported = {text for reading in readings for text in reading.against}
    if reasons := [text for text in why_not(listing, fields) if text not in reported]:
        contents += f"; {'; '.join(reasons)}"
    if archives:
        contents += f" (unpack {', '.join(archives)} first: compressed files cannot be read from the middle)"
    if not readings:
        raise NoPairSet(f"no pair set at {given}: {contents}; expected {EXPECTED}")
    if len(readings) == 1:
        (only,) = readings
        raise NoPairSet(
            f"no pair set at {given}: {contents}. It could be {only.what}, but {'; '.join(only.against)}{_anyway(only)}"
        )
    ways = "; ".join(_told(reading) for reading in free or readings)
    raise UserError(f"{given} can be read in {len(free or readings)} ways: {contents}. {ways}")


def _are(what: str) -> str:
    return "is" if what.startswith("1 ") else "are"


def _told(reading: Reading) -> str:
    against = f" (against it: {'; '.join(reading.against)})" if reading.against else ""
    return f"--layout {reading.layout}: {reading.what}{against}"


def _anyway(reading: Reading) -> str:
    return "" if reading.layout in ("images", "metadata") else f" (--layout {reading.layout} reads it anyway)"


def _open(layout: Layout, listing: Listing, fields: PairFields) -> tuple[Opened, Recognised]:
    check_options(layout, fields, listing.root.location)
    opened = layout.open(listing, fields)
    aside = (*opened.aside, *left_aside(listing))
    notes, unit = tuple(opened.notes), "row" if fields.caption == "all" else opened.unit
    return opened, Recognised(layout.name, opened.what, opened.prompts, notes, aside, unit, opened.images)


def _files(root: Store, names: dict[str, int | None]) -> Listing:
    """A listing of only these files."""
    listing = Listing(root)
    for name, size in names.items():
        listing.files.setdefault(PurePosixPath(name).suffix.lower(), []).append((name, size))
    return listing


def _refuse_own(store: Store, given: str) -> None:
    if store.exists("plan.json") and (kind := own_folder(store, "", ["plan.json"])) is not None:
        raise UserError(f"{given} is {kind}, not a pair set")


def _layout_of_file(name: str, given: str, fields: PairFields) -> Layout:
    suffix = PurePosixPath(name).suffix.lower()
    if name.lower().endswith(COMPRESSED):
        raise NoPairSet(f"no pair set at {given}: unpack it first, compressed files cannot be read from the middle")
    if name == METADATA_PARQUET or (suffix == ".txt" and not fields.with_images):
        return BY_NAME["metadata"]
    if suffix not in BY_SUFFIX:
        raise NoPairSet(
            f"no pair set at {given}: {suffix or 'a file without a suffix'} is not a file of rows; expected {EXPECTED}"
        )
    return BY_NAME[BY_SUFFIX[suffix]]


def _layout_of_files(names: dict[str, int | None], root: Store, given: str) -> Layout:
    """The layout of the files that a pattern matches."""
    kinds = sorted({PurePosixPath(name).suffix.lower() for name in names})
    if len(kinds) > 1:
        raise UserError(
            f"{given} matches files of several kinds ({', '.join(kinds)}); name one, as in {root.location}/*{kinds[-1]}"
        )
    if not kinds or kinds[0] not in (*TABLE_SUFFIXES, *COLUMN_SUFFIXES):
        found = f"; found {kinds[0]}" if kinds else ""
        raise NoPairSet(f"no pair set at {given}: expected {EXPECTED}{found}")
    if BY_SUFFIX[kinds[0]] == "metadata" and len(names) > 1:
        raise UserError(f"{given} matches {len(names)} {kinds[0]} files; accepted: one")
    return BY_NAME[BY_SUFFIX[kinds[0]]]
