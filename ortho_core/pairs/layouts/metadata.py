"""Files of rows that name images beside them: pairs.jsonl, the metadata of imagefolders, CSV, TSV, JSON."""

from dataclasses import replace

from ortho_core.errors import UserError
from ortho_core.pairs.formats.columns import METADATA_PARQUET
from ortho_core.pairs.formats.image_files import is_image
from ortho_core.pairs.formats.json_documents import IMAGE_KEY
from ortho_core.pairs.formats.places import AS_WRITTEN, Places
from ortho_core.pairs.formats.row_file import UNNAMED, RowFile
from ortho_core.pairs.formats.row_files import Looks, RowFiles, look
from ortho_core.pairs.layouts.column_files import open_parquet, other_prompts, said_choice
from ortho_core.pairs.layouts.images import not_targets
from ortho_core.pairs.layouts.layout import Opened, Reading, no_images_found, of_split, own_places, places_in
from ortho_core.pairs.listing import TABLE_SUFFIXES, Listing, count, is_control, some
from ortho_core.pairs.names import USUAL_IMAGES, USUAL_PROMPTS, accepted, names_of, plain
from ortho_core.pairs.rows import LayoutName, Names, PairFields
from ortho_core.pairs.splits import split_of

#: Ortho's file, and the files of an imagefolder: they contain rows, whatever the names of their fields.
PAIRS, IMAGEFOLDER = "pairs.jsonl", ("metadata.jsonl", "metadata.csv", "metadata.tsv", METADATA_PARQUET)
#: Largest number of other files whose first rows are checked for images and prompts.
MOST_LOOKS = 40


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
            against.append(f"--prompt is given, but {some(files)} has captions")
        return Reading(self.name, f"rows in {some(files)}", tuple(against))

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        root = listing.root
        chosen, against = _choose(listing, fields)
        if not chosen or against:
            why = against or [
                f"--layout metadata: no file in {root.location} has rows of pairs",
                *why_not(listing, fields),
            ]
            raise UserError("; ".join(why))
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
            opened.format, opened.prompts, more = open_parquet(listing, sized, fields)
            opened.notes += more
            _count_images(opened, listing, [places.base for places in opened.format.places.values()])
            return opened
        looks = [_look(listing, file, fields) for file in files]
        for seen in looks:
            problem = seen.problem or _lacks(seen, fields)
            if problem is None and seen.table.form == "{":
                named = any(is_image(str(row.get(IMAGE_KEY))) for row in seen.rows)
                problem = None if named else _not_found(seen, listing, fields)  # the keys may not be image names
            if problem is not None:
                raise UserError(f"{root.location}/{seen.table.file}: {problem}")
        tables = [_named(seen, listing, fields) for seen in looks]
        prompt, image, _ = tables[0].names
        opened.format, opened.prompts = RowFiles(root, tables), f"captions from field {prompt}"
        notes += other_prompts(looks[0].fields, prompt, fields)
        if image is not None:
            base = tables[0].places.base
            elsewhere = base != tables[0].file.rpartition("/")[0]
            notes.append(f"images from field {image}" + (f", in {base or '.'}/" if elsewhere else ""))
            notes += [text for seen in looks if (text := _not_found(seen, listing, fields))][:1]
        if not tables[0].header:
            notes.append(
                "the file has no header: the column of image names is used for the images, the other for captions"
            )
        if any(isinstance(row.get(prompt), list) for row in looks[0].rows):
            notes.append(said_choice(fields))
        _count_images(opened, listing, [table.places.base for table in tables])
        return opened


def _count_images(opened: Opened, listing: Listing, bases: list[str]) -> None:
    """Report the number of images in the folders that the rows refer to, and the number of images elsewhere."""
    if listing.seen:
        named = [
            f for f in listing.folders if any(f"{f.path}/".startswith(f"{base}/" if base else "") for base in bases)
        ]
        opened.images = sum(folder.images for folder in named)
        read = {folder.path for folder in named}
        opened.aside += not_targets([f for f in listing.folders if f.path not in read], "no rows refer to this folder")


def _candidates(listing: Listing) -> list[str]:
    texts = [file for file in listing.first_texts if _look(listing, file, PairFields()).table.kind != ".txt"]
    files = listing.names_of(*TABLE_SUFFIXES, ".txt") + texts
    return files + [file for file in listing.names_of(".parquet") if file.rpartition("/")[2] == METADATA_PARQUET]


def _choose(listing: Listing, fields: PairFields) -> tuple[list[str], list[str]]:
    """The files with the rows, and reasons against them. Files at the top and files with a known name are preferred."""
    files = [file for file in _candidates(listing) if not is_control(file.rpartition("/")[0])]
    if not listing.seen:  # the user named a file
        return files, []
    at_top = [file for file in files if "/" not in file]
    for group in ([f for f in at_top if f == PAIRS], [f for f in at_top if f in IMAGEFOLDER]):
        if group:
            return group[:1], _side_by_side(group)
    known = [file for file in files if file.rpartition("/")[2] in (PAIRS, *IMAGEFOLDER)]
    if known:
        kinds = {file.rpartition("/")[2] == METADATA_PARQUET for file in known}
        mixed = ["there is metadata.parquet and also metadata of other kinds"] if len(kinds) > 1 else []
        folders = [file.rpartition("/")[0] for file in known]
        twice = [file for file in known if folders.count(file.rpartition("/")[0]) > 1]
        return known, _side_by_side(twice) + mixed
    rows = [file for file in files[:MOST_LOOKS] if _complete(_look(listing, file, fields), listing, fields)]
    splits = {split_of(file) for file in rows}
    names = {file.rpartition("/")[2] for file in rows}
    if len(rows) > 1 and (len(splits) < len(rows) or None in splits) and len(names) > 1:
        return rows, _side_by_side(rows)
    return rows, []


def _side_by_side(files: list[str]) -> list[str]:
    return [f"{some(files)} all contain rows: name one, as in --pairs .../{files[0]}"] if len(files) > 1 else []


def _wanted(fields: PairFields) -> set[str]:
    chosen = (fields.prompt_field, fields.image_field, fields.id_field)
    return {plain(name) for name in (*USUAL_PROMPTS, *USUAL_IMAGES, *filter(None, chosen))}


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


def _complete(seen: Looks, listing: Listing, fields: PairFields) -> bool:
    """Whether the first rows have a prompt, and an image that exists."""
    named = seen.problem is None and bool(seen.rows) and not _lacks(seen, fields) and _has(seen, fields)
    return named and (fields.layout == "metadata" or _not_found(seen, listing, fields) is None)


def why_not(listing: Listing, fields: PairFields) -> list[str]:
    """Reasons why files that may contain rows are not read; the best candidates first."""
    looks = sorted(listing.looks.values(), key=lambda seen: seen.problem is not None)
    tables = [seen for seen in looks if seen.table.kind != ".txt"]
    reasons = [_lacks(seen, fields) or _not_found(seen, listing, fields) for seen in tables]
    return list(filter(None, reasons))[:2]


def _has(seen: Looks, fields: PairFields) -> bool:
    return all(name is None or name in seen.fields for name in _names(seen, fields))


def _lacks(seen: Looks, fields: PairFields) -> str | None:
    """A message about fields that the rows lack; None if they have all, or if there are no rows to check."""
    if seen.problem is not None:
        return seen.problem if seen.problem.startswith(seen.table.file) else f"{seen.table.file}: {seen.problem}"
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
    """The table with the names of its fields, and the places of its images."""
    prompt, image, id_field = _names(seen, fields)
    names: Names = (prompt or UNNAMED[0], (image or UNNAMED[1]) if fields.with_images else None, id_field)
    return replace(seen.table, names=names, places=_places(seen, listing, fields) or own_places(seen.table.file))


def _places(seen: Looks, listing: Listing, fields: PairFields) -> Places | None:
    """The places of the images of the first rows; None if they are not found."""
    if not fields.with_images or fields.image_root is not None:
        return AS_WRITTEN
    file, image = seen.table.file, str(_names(seen, fields)[1])
    if (file, image) not in listing.places:
        listing.places[file, image] = places_in(listing, file, [row.get(image) for row in seen.rows])
    return listing.places[file, image]


def _not_found(seen: Looks, listing: Listing, fields: PairFields) -> str | None:
    if seen.problem is not None or not seen.rows or _places(seen, listing, fields) is not None:
        return None
    return no_images_found(seen.table.file, [row.get(str(_names(seen, fields)[1])) for row in seen.rows])
