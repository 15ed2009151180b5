"""Images with a caption file of the same name: in one folder, nested, or in kohya's folders (`REPEATS_name`)."""

import re
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ortho_core.errors import UserError
from ortho_core.pairs.formats.image_files import CAPTIONS, CaptionFiles, ImageFiles, split_images, stem_of
from ortho_core.pairs.layouts.images import beside, not_targets
from ortho_core.pairs.layouts.layout import REPEATS, Opened, Reading, of_split, rows_aside
from ortho_core.pairs.listing import Folder, Listing, count, is_control, some
from ortho_core.pairs.rows import LayoutName, PairFields

#: Folders that trainers keep beside their images. Images without captions there do not speak against this layout.
BESIDE_TRAINING = {"reg", "regularization", "class_images", "sample", "samples", "preview", "previews", "log", "logs"}

NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")


class Captions:
    name: LayoutName = "captions"
    what = "images with caption files"
    options = frozenset({"prompt_field", "caption", "split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        captioned = _find(listing)
        number = sum(folder.captioned for folder in captioned.targets)
        if not number or not fields.with_images:
            return None
        suffixes = sorted({suffix.lower() for suffix in captioned.suffixes})
        what = f"{count(number, 'image')} with a caption file each ({', '.join(suffixes)}){captioned.where()}"
        against = list(captioned.against)
        if fields.prompt is not None:
            against.append(f"--prompt is given, but there are {count(number, 'caption file')}")
        expected = sum(f.images for f in listing.folders if not is_control(f.path) and not _beside_training(f.path))
        if 2 * number < expected:
            against.append(f"{expected - number} of {expected} images have no caption file")
        if listing.doubles and fields.prompt_field is None:
            texts = [suffix[1:] for suffix in suffixes if suffix != ".json"]
            against.append(f"{listing.doubles} images have several; --prompt-field {' or '.join(texts)} chooses")
        with suppress(UserError):  # reported when the set is opened
            first = [] if against else _first_captions(captioned.format(listing, fields))
            if _are_boxes(first):
                against.append("the first of them contain only numbers, like object boxes")
            elif first and all(text is None for text in first):
                against.append("the first of them have no caption in a usual field (--prompt-field names one)")
        return Reading(self.name, what, tuple(against))

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        root, captioned = listing.root, _find(listing)
        if not captioned.targets:
            raise UserError(
                f"--layout captions: no image in {root.location} has a caption file; found {listing.inventory()}"
            )
        targets, notes = of_split(captioned.targets, lambda folder: f"{folder.path}/", fields.split, root.location)
        format = replace(captioned, targets=targets).format(listing, fields)
        read = set(format.folders)
        without = sum(folder.images - folder.captioned for folder in targets)
        if without:
            notes.append(f"{count(without, 'image')} without a caption file will be quarantined")
        repeated = [folder.path for folder in targets if REPEATS.fullmatch(folder.path)]
        if repeated:
            notes.append(f"the repeats of {some(repeated)} are not applied, each image is one row")
        if fields.caption is None and any(isinstance(text, str) and "\n" in text for text in _first_captions(format)):
            notes.append("a text file with several lines is one caption (--caption chooses among lines)")
        rest = [folder for folder in listing.folders if folder.path not in read]
        control = [folder for folder in rest if is_control(folder.path)]
        other = [folder for folder in rest if not is_control(folder.path)]
        aside = not_targets(control, "masks or conditions")
        aside += not_targets(
            other, "without captions" if fields.split is None else "without captions, or in another split"
        )
        orphans = listing.orphans - sum(folder.captioned for folder in captioned.targets if captioned.elsewhere)
        if orphans:
            aside.append(count(orphans, "text file without an image", "text files without an image"))
        prompts = _prompts(listing, captioned.suffixes, fields)
        place = captioned.where() if captioned.elsewhere else " beside each image"
        return Opened(
            root,
            format,
            f"images with caption files, in {count(len(read), 'folder')}",
            f"captions from {', '.join(prompts.suffixes)}{place}",
            notes,
            aside + beside(targets) + rows_aside(listing, captions=False),
        )


@dataclass(frozen=True)
class Captioned:
    """Folders of images with captions, and the places of the captions."""

    targets: list[Folder]
    #: Number of caption files by suffix, in its written case.
    suffixes: Counter[str]
    #: By folder of images, the folder with its captions, if they are not beside the images.
    elsewhere: dict[str, str] = field(default_factory=dict)
    against: tuple[str, ...] = ()

    def where(self) -> str:
        return f" in {some([f'{folder}/' for folder in self.elsewhere.values()])}" if self.elsewhere else ""

    def format(self, listing: Listing, fields: PairFields) -> ImageFiles:
        """The set as a format. Raises UserError for a `--prompt-field` that the caption files do not have."""
        prompts = replace(_prompts(listing, self.suffixes, fields), elsewhere=self.elsewhere)
        return ImageFiles(listing.root, sorted(folder.path for folder in self.targets), prompts)


def _find(listing: Listing) -> Captioned:
    """Captions beside the images; if there are none, captions in folders whose paths differ in one part from the images'."""
    targets = [folder for folder in listing.folders if folder.captioned and not is_control(folder.path)]
    if targets or not listing.texts:
        return Captioned(targets, listing.captions)
    by_form: dict[tuple[str, ...], list[str]] = {}
    for path in listing.texts:
        for form in _forms(path):
            by_form.setdefault(form, []).append(path)
    elsewhere, against = {}, []
    for folder in listing.folders:
        near = {path for form in _forms(folder.path) for path in by_form.get(form, ()) if path != folder.path}
        if not near or is_control(folder.path):
            continue
        stems = {stem_of(name) for name in split_images(_names(listing, folder.path))[0]}
        named = {path: len(stems & {stem_of(name) for name in _names(listing, path)}) for path in sorted(near)}
        fitting = [path for path, number in named.items() if 2 * number >= len(stems)]
        if len(fitting) > 1:
            against.append(f"the captions of {folder.path or '.'}/ may be in {' or '.join(fitting)}")
        if fitting:
            targets.append(replace(folder, captioned=named[fitting[0]]))
            elsewhere[folder.path] = fitting[0]
    shared = [path for path, number in Counter(elsewhere.values()).items() if number > 1]
    if shared:
        images = [f"{folder}/" for folder, path in elsewhere.items() if path == shared[0]]
        against.append(f"{shared[0]}/ may have the captions of {' or '.join(images[:3])}")
    suffixes = sum((listing.texts[path] for path in set(elsewhere.values())), Counter[str]())
    return Captioned(targets, suffixes, elsewhere, tuple(against[:2]))


def _forms(path: str) -> list[tuple[str, ...]]:
    """A path with each of its parts replaced by `*` in turn: two paths with a common form differ in one part only."""
    parts = path.split("/")
    return [(*parts[:i], "*", *parts[i + 1 :]) for i in range(len(parts))]


def _names(listing: Listing, path: str) -> list[str]:
    return listing.root.child(path).names() if path else listing.root.names()


def _beside_training(path: str) -> bool:
    return any(part.lower() in BESIDE_TRAINING for part in path.split("/"))


def _prompts(listing: Listing, suffixes: Collection[str], fields: PairFields) -> CaptionFiles:
    """Text files before JSON, which mostly has other data; `--prompt-field` names a suffix, or a field of the JSON."""
    order = [*CAPTIONS, ".json"]
    written = sorted(suffixes, key=lambda suffix: (order.index(suffix.lower()), suffix))
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


def _first_captions(format: ImageFiles) -> list[Any]:
    cut = next(format.cuts(16), None)
    if cut is None:
        return []
    return [format.prompt(cut.file, name) for name in format.names_in(cut.file).from_to(0, cut.rows)]


def _are_boxes(captions: list[Any]) -> bool:
    """Whether the texts are rows of numbers: the classes and boxes of objects in a picture."""
    texts = [line.split() for text in captions if isinstance(text, str) for line in text.splitlines()]
    return bool(texts) and all(len(words) > 3 and all(map(NUMBER.fullmatch, words)) for words in texts)
