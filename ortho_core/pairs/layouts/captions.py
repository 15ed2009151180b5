"""Images with a caption file of the same name: in one folder, nested, or as kohya's trainer has them (`REPEATS_name`)."""

from ortho_core.errors import UserError
from ortho_core.pairs.formats.image_files import CAPTIONS, CaptionFiles, ImageFiles
from ortho_core.pairs.layouts.images import beside, not_targets
from ortho_core.pairs.layouts.layout import REPEATS, Opened, Reading, of_split, rows_aside
from ortho_core.pairs.listing import Folder, Listing, count, is_control, some
from ortho_core.pairs.rows import LayoutName, PairFields

#: Folders that trainers keep beside their images: images without captions there are no loss.
BESIDE_TRAINING = {"reg", "regularization", "class_images", "sample", "samples", "preview", "previews", "log", "logs"}


class Captions:
    name: LayoutName = "captions"
    what = "images with caption files"
    options = frozenset({"prompt_field", "caption", "split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        captioned = sum(folder.captioned for folder in _targets(listing))
        if not captioned or not fields.with_images:
            return None
        suffixes = sorted({suffix.lower() for suffix in listing.captions})
        what = f"{count(captioned, 'image')} with a caption file each ({', '.join(suffixes)})"
        against = (
            [f"--prompt is given, and there are {count(captioned, 'caption file')}"]
            if fields.prompt is not None
            else []
        )
        expected = sum(f.images for f in listing.folders if not is_control(f.path) and not _beside_training(f.path))
        if 2 * captioned < expected:
            against.append(f"{expected - captioned} of {expected} images have no caption file")
        if listing.doubles and fields.prompt_field is None:
            texts = [suffix[1:] for suffix in suffixes if suffix != ".json"]
            against.append(f"{listing.doubles} images have several; --prompt-field {' or '.join(texts)} chooses")
        return Reading(self.name, what, tuple(against))

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        root = listing.root
        prompts = _prompts(listing, fields)
        targets, notes = of_split(_targets(listing), lambda folder: f"{folder.path}/", fields.split, root.location)
        if not targets:
            raise UserError(
                f"--layout captions: no image in {root.location} has a caption file; found {listing.inventory()}"
            )
        read = {folder.path for folder in targets}
        without = sum(folder.images - folder.captioned for folder in targets)
        if without:
            notes.append(f"{count(without, 'image')} there without a caption file will be quarantined")
        repeated = [folder.path for folder in targets if REPEATS.fullmatch(folder.path)]
        if repeated:
            notes.append(f"the repeats of {some(repeated)} are not applied, each image is one row")
        format = ImageFiles(root, sorted(read), prompts)
        if prompts.choice is None and _has_lines(format):
            notes.append("captions of several lines are taken whole (--caption chooses among lines)")
        rest = [folder for folder in listing.folders if folder.path not in read]
        control = [folder for folder in rest if is_control(folder.path)]
        other = [folder for folder in rest if not is_control(folder.path)]
        aside = not_targets(control, "masks or conditions")
        aside += not_targets(
            other, "without captions" if fields.split is None else "without captions, or of another split"
        )
        if listing.orphans:
            aside.append(count(listing.orphans, "text file without an image", "text files without an image"))
        source = ", ".join(prompts.suffixes)
        return Opened(
            root,
            format,
            f"images with caption files, in {count(len(read), 'folder')}",
            f"captions from {source} beside each image",
            notes,
            aside + beside(targets) + rows_aside(listing, captions=False),
        )


def _targets(listing: Listing) -> list[Folder]:
    return [folder for folder in listing.folders if folder.captioned and not is_control(folder.path)]


def _beside_training(path: str) -> bool:
    return any(part.lower() in BESIDE_TRAINING for part in path.split("/"))


def _prompts(listing: Listing, fields: PairFields) -> CaptionFiles:
    """Text files before JSON, which mostly says other things; `--prompt-field` names a suffix, or a field of the JSON."""
    order = [*CAPTIONS, ".json"]
    written = sorted(listing.captions, key=lambda suffix: (order.index(suffix.lower()), suffix))
    texts = [suffix for suffix in written if suffix.lower() != ".json"]
    chosen = fields.prompt_field
    if chosen is None:
        return CaptionFiles(tuple(texts or written), fields.caption)
    named = [suffix for suffix in texts if suffix.lower() == f".{chosen.lstrip('.').lower()}"]
    if named:
        return CaptionFiles(tuple(named), fields.caption)
    objects = [suffix for suffix in written if suffix.lower() == ".json"]
    if objects:
        return CaptionFiles(tuple(objects), fields.caption, chosen)
    raise UserError(
        f"--prompt-field {chosen}: {listing.root.location} has caption files {', '.join(written)}; accepted: one of these, or a "
        "field of JSON files beside the images"
    )


def _has_lines(format: ImageFiles) -> bool:
    """Whether one of the first captions has several lines."""
    cut = next(format.cuts(16), None)
    if cut is None:
        return False
    folder, names = cut.file, format.names_in(cut.file).from_to(0, cut.rows)
    found = (format.prompt(folder, name) for name in names)
    return any(isinstance(prompt, str) and "\n" in prompt for prompt in found)
