"""Files whose rows name the images that lie beside them: pairs.jsonl, imagefolders' metadata, CSV, TSV, JSON."""

from dataclasses import replace
from typing import Any, TypeGuard

from ortho_core.errors import UserError
from ortho_core.pairs.formats.columns import METADATA_PARQUET
from ortho_core.pairs.formats.parquet import Parquet
from ortho_core.pairs.formats.row_file import UNNAMED, RowFile
from ortho_core.pairs.formats.row_files import Looks, RowFiles, look
from ortho_core.pairs.layouts.column_files import said_choice
from ortho_core.pairs.layouts.images import not_targets
from ortho_core.pairs.layouts.layout import Opened, Reading, of_split
from ortho_core.pairs.listing import TABLE_SUFFIXES, Listing, count, is_control, some
from ortho_core.pairs.names import USUAL_IMAGES, USUAL_PROMPTS, accepted, names_of, plain
from ortho_core.pairs.rows import LayoutName, Names, PairFields
from ortho_core.pairs.splits import split_of

#: Our own file, and what an imagefolder has: these are rows whatever their fields are called.
PAIRS, IMAGEFOLDER = "pairs.jsonl", ("metadata.jsonl", "metadata.csv", "metadata.tsv", METADATA_PARQUET)
#: Other files of rows whose heads are read to see whether they name images and prompts.
MOST_LOOKS = 40
#: Images of the first rows that are looked for.
PROBED = 8


class Metadata:
    name: LayoutName = "metadata"
    what = "files of rows"
    options = frozenset({"prompt_field", "image_field", "id_field", "image_root", "caption", "split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        files, against = _choose(listing, fields)
        if not files:
            return None
        if not against and files[0].rpartition("/")[2] != METADATA_PARQUET:
            against = [text for file in files[:3] if (text := _lacks(_look(listing, file, fields), fields))]
        if fields.prompt is not None:
            against.append(f"--prompt is given, and {some(files)} has captions")
        return Reading(self.name, f"rows in {some(files)}", tuple(against))

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        root = listing.root
        chosen, against = _choose(listing, fields)
        if not chosen or against:
            raise UserError("; ".join(against) or f"--layout metadata: no file in {root.location} has rows of pairs")
        files, notes = of_split(chosen, lambda file: file, fields.split, root.location)
        rest = [file for file in _candidates(listing) if file not in set(chosen)]
        aside = [f"{some(rest)} (not the rows)"] if rest else []
        if listing.captions:
            aside.append(count(sum(listing.captions.values()), "caption file"))
        opened = Opened(
            root, RowFiles(root, []), f"rows in {some(files)}", "captions from a column", notes, aside, unit="row"
        )
        if files[0].rpartition("/")[2] == METADATA_PARQUET:
            sized = [file for file in listing.of(".parquet") if file[0] in set(files)]
            opened.format = Parquet(root, sized, fields)
            _count_images(opened, listing, [file.rpartition("/")[0] for file in files])
            return opened
        looks = [_look(listing, file, fields) for file in files]
        for seen in looks:
            if seen.problem or (text := _lacks(seen, fields)):
                raise UserError(f"{root.location}/{seen.table.file}: {seen.problem or text}")
        tables = [_named(seen, listing, fields) for seen in looks]
        prompt, image, _ = tables[0].names
        opened.format, opened.prompts = RowFiles(root, tables), f"captions from field {prompt}"
        if image is not None:
            elsewhere = tables[0].base != tables[0].file.rpartition("/")[0]
            notes.append(f"images from field {image}" + (f", in {tables[0].base or '.'}/" if elsewhere else ""))
        if not tables[0].header:
            notes.append(
                "the file names no columns: that of image names was taken for the images, the other for captions"
            )
        if any(isinstance(row.get(prompt), list) for row in looks[0].rows):
            notes.append(said_choice(fields))
        _count_images(opened, listing, [table.base for table in tables])
        return opened


def _count_images(opened: Opened, listing: Listing, bases: list[str]) -> None:
    """Say how many images lie in the folders that rows name images of, and how many elsewhere."""
    if listing.seen:
        named = [
            f for f in listing.folders if any(f"{f.path}/".startswith(f"{base}/" if base else "") for base in bases)
        ]
        opened.images = sum(folder.images for folder in named)
        read = {folder.path for folder in named}
        opened.aside += not_targets([f for f in listing.folders if f.path not in read], "no rows are read there")


def _candidates(listing: Listing) -> list[str]:
    files = listing.names_of(*TABLE_SUFFIXES, ".txt")
    return files + [file for file in listing.names_of(".parquet") if file.rpartition("/")[2] == METADATA_PARQUET]


def _choose(listing: Listing, fields: PairFields) -> tuple[list[str], list[str]]:
    """The files that hold the rows, and what speaks against them. Those nearest to the top, and those of a known name, first."""
    files = [file for file in _candidates(listing) if not is_control(file.rpartition("/")[0])]
    if not listing.seen:  # a file that was named
        return files, []
    at_top = [file for file in files if "/" not in file]
    for group in ([f for f in at_top if f == PAIRS], [f for f in at_top if f in IMAGEFOLDER]):
        if group:
            return group[:1], _side_by_side(group)
    known = [file for file in files if file.rpartition("/")[2] in (PAIRS, *IMAGEFOLDER)]
    if known:
        kinds = {file.rpartition("/")[2] == METADATA_PARQUET for file in known}
        mixed = ["metadata.parquet lies beside metadata of other kinds"] if len(kinds) > 1 else []
        folders = [file.rpartition("/")[0] for file in known]
        twice = [file for file in known if folders.count(file.rpartition("/")[0]) > 1]
        return known, _side_by_side(twice) + mixed
    rows = [file for file in files[:MOST_LOOKS] if _complete(_look(listing, file, fields), fields)]
    splits = {split_of(file) for file in rows}
    names = {file.rpartition("/")[2] for file in rows}
    if len(rows) > 1 and (len(splits) < len(rows) or None in splits) and len(names) > 1:
        return rows, _side_by_side(rows)
    return rows, []


def _side_by_side(files: list[str]) -> list[str]:
    return [f"{some(files)} all hold rows: name one, as in --pairs .../{files[0]}"] if len(files) > 1 else []


def _wanted(fields: PairFields) -> set[str]:
    own = (fields.prompt_field, fields.image_field, fields.id_field)
    return {plain(name) for name in (*USUAL_PROMPTS, *USUAL_IMAGES, *filter(None, own))}


def _look(listing: Listing, file: str, fields: PairFields) -> Looks:
    if file not in listing.looks:
        try:
            listing.looks[file] = look(listing.root, file, _wanted(fields))
        except OSError as error:
            listing.looks[file] = Looks(RowFile(file), problem=str(error))
    return listing.looks[file]


def _names(seen: Looks, fields: PairFields) -> tuple[str | None, str | None, str | None]:
    first = ("text", "file_name") if seen.table.file.rpartition("/")[2] in IMAGEFOLDER else ()
    return names_of(seen.fields, fields, first)


def _complete(seen: Looks, fields: PairFields) -> bool:
    """Whether the first rows have an image and a prompt."""
    return seen.problem is None and bool(seen.rows) and not _lacks(seen, fields) and _has(seen, fields)


def _has(seen: Looks, fields: PairFields) -> bool:
    return all(name is None or name in seen.fields for name in _names(seen, fields))


def _lacks(seen: Looks, fields: PairFields) -> str | None:
    """What the rows have no field for; None if they have all, or if there are no rows to judge by."""
    if seen.problem is not None:
        return f"{seen.table.file}: {seen.problem}"
    prompt, image, _ = _names(seen, fields)
    missing = [
        f"{what} ({accepted(names)}; --{what}-field names one)"
        for what, name, names in (("prompt", prompt, USUAL_PROMPTS), ("image", image, USUAL_IMAGES))
        if name is None and (what == "prompt" or fields.with_images)
    ]
    if not missing or not seen.fields or seen.table.kind == ".txt":
        return None
    return (
        f"{seen.table.file} has the fields {some(seen.fields, 12)}, and none of them is the {' nor the '.join(missing)}"
    )


def _named(seen: Looks, listing: Listing, fields: PairFields) -> RowFile:
    """The table with the names of its fields and the folder that its images start from."""
    prompt, image, own = _names(seen, fields)
    names: Names = (prompt or UNNAMED[0], (image or UNNAMED[1]) if fields.with_images else None, own)
    table = replace(seen.table, names=names)
    return (
        replace(table, base=_base(seen, table, listing)) if fields.with_images and fields.image_root is None else table
    )


def _base(seen: Looks, table: RowFile, listing: Listing) -> str:
    """The folder in which the images of the first rows are found: the file's own, the set's, or one of images in these."""
    folder = table.file.rpartition("/")[0]
    paths = [path for row in seen.rows[:PROBED] if _is_relative(path := row.get(str(table.names[1])))]
    inside = [
        f.path for f in listing.folders if f.path and "/" not in f.path.removeprefix(f"{folder}/" if folder else "")
    ]
    candidates = dict.fromkeys([folder, "", *inside])
    if not paths or len(candidates) == 1:
        return folder
    for base in candidates:
        if any(listing.root.exists(f"{base}/{path}" if base else path) for path in paths):
            return base
    return folder


def _is_relative(path: Any) -> TypeGuard[str]:
    return isinstance(path, str) and bool(path) and not path.startswith("/") and "://" not in path
