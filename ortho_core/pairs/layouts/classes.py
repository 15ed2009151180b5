"""One folder of images per class, directly or inside split folders: the folder's name is the prompt."""

import os
import re

from ortho_core.errors import NoPairSet
from ortho_core.pairs.formats.image_files import FolderNames, ImageFiles
from ortho_core.pairs.layouts.images import beside, not_targets
from ortho_core.pairs.layouts.layout import REPEATS, Opened, Reading, rows_aside
from ortho_core.pairs.listing import TABLE_SUFFIXES, Folder, Listing, count, is_control, some
from ortho_core.pairs.rows import LayoutName, PairFields
from ortho_core.pairs.splits import split_named, wanted

#: Names of folders that tell the purpose, the part of a set or the size of their images, and so are not classes.
NO_CLASS = re.compile(
    r"samples?|previews?|outputs?|logs?|checkpoints?|captions?|reg|regularization|originals?|raw|tmp|thumbs?|thumbnails?|grids?|"
    r"(?:.*[-_ ])?(?:images?|imgs?|pics|pictures|photos|data|dataset|results?)|source|target|inputs?|gt|ground[-_ ]?truth|"
    r"(?:part|batch|chunk|shard|subset|folder|group)[-_ ]?[0-9]+|[0-9]{4,}|[0-9]{4}[-_.][0-9]{2}\b.*|[0-9]+(?:x[0-9]+|px)",
    re.IGNORECASE,
)


class Classes:
    name: LayoutName = "classes"
    what = "labelled images"
    options = frozenset({"split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        if not fields.with_images or fields.prompt is not None:
            return None
        top, split, folders = _classes(listing, fields)
        if len(folders) < 2:  # a single folder of images is probably a set whose prompts are missing
            return None
        names = some([_name(folder) for folder in folders])
        what = f"{count(sum(folder.images for folder in folders), 'image')} in class folders, with the prompts {names}"
        return Reading(self.name, what, tuple(_against(listing, folders, top, split)), stated=False)

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        top, split, folders = _classes(listing, fields)
        if not folders:
            what = f"split {fields.split!r} with folders" if fields.split else "folder"
            raise NoPairSet(f"no {what} of images in {listing.root.location}: found {listing.inventory()}")
        base = "/".join(filter(None, (top, split)))
        root = listing.root.child(base) if base else listing.root
        names = sorted(_name(folder) for folder in folders)
        read = {folder.path for folder in folders}
        rest = [folder for folder in listing.folders if folder.path not in read]
        notes = [f"split {split_named(split) or split}"] if split else []
        return Opened(
            root,
            ImageFiles(root, names, FolderNames()),
            count(len(names), "class folder") + (f" in {top}/" if top else ""),
            f"the prompt is the folder's name: {some(names)}",
            notes,
            not_targets(rest, "another split, or not a class") + beside(folders) + rows_aside(listing),
        )


def _name(folder: Folder) -> str:
    return folder.path.rpartition("/")[2]


def _top(listing: Listing) -> str:
    """The folder that contains the folders of all images, if an archive has added one; empty for the set's own folder."""
    parents = {folder.path.rpartition("/")[0] for folder in listing.folders}
    parts = os.path.commonpath(parents).split("/") if parents else []
    while parts and split_named(parts[-1]):
        parts.pop()
    return "/".join(parts)


def _classes(listing: Listing, fields: PairFields) -> tuple[str, str, list[Folder]]:
    """The top folder, the split's folder in it (empty: the set has no splits), and the class folders in that.

    If the set has splits and no `--split` is given, it is the training split.
    """
    top = _top(listing)
    paths = {folder.path.removeprefix(f"{top}/" if top else ""): folder for folder in listing.folders}
    tops = {path.split("/")[0] for path in paths if path}
    splits = {split_named(name): name for name in sorted(tops, reverse=True) if split_named(name)}
    inside = {path: folder for path, folder in paths.items() if path.count("/") == 1}
    in_splits = bool(splits) and all(split_named(path.split("/")[0]) for path in inside) and bool(inside)
    flat = [folder for path, folder in paths.items() if path and "/" not in path]
    split = splits.get("train", "") if in_splits and not flat else ""
    if fields.split is not None:
        split = splits.get(wanted(fields.split)) or (fields.split if fields.split in tops else "")
        return top, split, [folder for path, folder in inside.items() if path.startswith(f"{split}/")]
    return top, split, [f for path, f in inside.items() if path.startswith(f"{split}/")] if split else flat


def _against(listing: Listing, folders: list[Folder], top: str, split: str) -> list[str]:
    against = []
    names = [_name(folder) for folder in folders]
    base = f"{'/'.join(filter(None, (top, split)))}/" if split else ""
    elsewhere = sum(f.images for f in listing.folders if f.path.startswith(base)) - sum(f.images for f in folders)
    if elsewhere:
        against.append(f"{count(elsewhere, 'image is', 'images are')} at another depth")
    if not split and (splits := [name for name in names if split_named(name)]):
        against.append(f"{some(splits)} {'has the name of a split' if len(splits) == 1 else 'have names of splits'}")
    if repeats := [name for name in names if REPEATS.fullmatch(name)]:
        against.append(f"{some(repeats)} {'looks' if len(repeats) == 1 else 'look'} like kohya's REPEATS_name")
    if purposes := [name for name in names if NO_CLASS.fullmatch(name) or is_control(name)]:
        against.append(f"{some(purposes)} {'is not a class name' if len(purposes) == 1 else 'are not class names'}")
    if listing.own:
        path, kind = next(iter(listing.own.items()))
        against.append(f"{path}/ is {kind}")
    if listing.orphans:
        against.append(f"there {'is' if listing.orphans == 1 else 'are'} {count(listing.orphans, 'text file')}")
    if rows := listing.names_of(*TABLE_SUFFIXES):
        against.append(f"{some(rows)} may contain captions of the images")
    return against
