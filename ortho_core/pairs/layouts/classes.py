"""A folder of images per class, by themselves or in split folders: the folder's name is the prompt."""

import re

from ortho_core.errors import NoPairSet
from ortho_core.pairs.formats.image_files import FolderNames, ImageFiles
from ortho_core.pairs.layouts.images import beside, not_targets
from ortho_core.pairs.layouts.layout import REPEATS, Opened, Reading, rows_aside
from ortho_core.pairs.listing import Folder, Listing, count, is_control, some
from ortho_core.pairs.rows import LayoutName, PairFields
from ortho_core.pairs.splits import split_named, wanted

#: Names of folders that say what their images are for, and so are no classes.
PURPOSES = re.compile(
    r"images?|imgs?|pics|pictures|photos|data|dataset|samples?|previews?|outputs?|results?|logs?|checkpoints?|captions?|reg|"
    r"regularization|depth|canny|pose|openpose|seg|edges?|normals?|originals?|raw|tmp|thumbs?|thumbnails?|grids?",
    re.IGNORECASE,
)


class Classes:
    name: LayoutName = "classes"
    what = "labelled images"
    options = frozenset({"split"})

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        if not fields.with_images or fields.prompt is not None:
            return None
        split, folders = _classes(listing, fields)
        if len(folders) < 2:  # one folder of images is what is left of a set whose prompts are missing
            return None
        names = [folder.path.rpartition("/")[2] for folder in folders]
        what = f"{count(sum(folder.images for folder in folders), 'image')} in folders of classes, of prompts {some(names)}"
        return Reading(self.name, what, tuple(_against(listing, folders, names, split)), stated=False)

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        split, folders = _classes(listing, fields)
        if not folders:
            what = f"split {fields.split!r} with folders" if fields.split else "folder"
            raise NoPairSet(f"no {what} of images in {listing.root.location}: found {listing.inventory()}")
        root = listing.root.child(split) if split else listing.root
        names = sorted(folder.path.rpartition("/")[2] for folder in folders)
        read = {folder.path for folder in folders}
        rest = [folder for folder in listing.folders if folder.path not in read]
        notes = [f"split {split_named(split) or split}"] if split else []
        return Opened(
            root,
            ImageFiles(root, names, FolderNames()),
            f"{count(len(names), 'folder')} of classes",
            f"the prompt is the folder's name: {some(names)}",
            notes,
            not_targets(rest, "of another split or no class") + beside(folders) + rows_aside(listing),
        )


def _classes(listing: Listing, fields: PairFields) -> tuple[str, list[Folder]]:
    """The split's folder (empty: the set has no splits) and the folders of classes directly in it.

    A set with splits stands for its training split.
    """
    tops = {folder.path.split("/")[0] for folder in listing.folders if folder.path}
    splits = {split_named(top): top for top in sorted(tops, reverse=True) if split_named(top)}
    inside = [folder for folder in listing.folders if folder.path.count("/") == 1]
    in_splits = bool(splits) and all(split_named(folder.path.split("/")[0]) for folder in inside) and bool(inside)
    flat = [folder for folder in listing.folders if folder.path and "/" not in folder.path]
    if fields.split is not None:
        split = splits.get(wanted(fields.split)) or (fields.split if fields.split in tops else None)
        return split or "", [folder for folder in inside if folder.path.startswith(f"{split}/")]
    if in_splits and not flat and "train" in splits:
        return splits["train"], [folder for folder in inside if folder.path.startswith(f"{splits['train']}/")]
    return "", flat


def _against(listing: Listing, folders: list[Folder], names: list[str], split: str) -> list[str]:
    against = []
    apart = [folder for folder in listing.folders if not split or folder.path.startswith(f"{split}/")]
    elsewhere = sum(folder.images for folder in apart) - sum(folder.images for folder in folders)
    if elsewhere:
        against.append(f"{count(elsewhere, 'image lies', 'images lie')} at another depth")
    if not split and (splits := [name for name in names if split_named(name)]):
        against.append(f"{some(splits)} {'is' if len(splits) == 1 else 'are'} named as splits are")
    if repeats := [name for name in names if REPEATS.fullmatch(name)]:
        against.append(f"{some(repeats)} {'is' if len(repeats) == 1 else 'are'} named as folders with repeats are")
    if purposes := [name for name in names if PURPOSES.fullmatch(name) or is_control(name)]:
        against.append(f"{some(purposes)} {'names' if len(purposes) == 1 else 'name'} no class")
    if listing.own:
        path, what = next(iter(listing.own.items()))
        against.append(f"{path}/ is {what}")
    if listing.orphans:
        against.append(f"{count(listing.orphans, 'text file lies', 'text files lie')} there")
    return against
