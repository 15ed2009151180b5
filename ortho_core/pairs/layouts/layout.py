"""The protocol of a layout: recognise a folder, and open it; and functions that layouts share."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from ortho_core.errors import NoPairSet, UserError
from ortho_core.marks import conduct, mark_of
from ortho_core.pairs.formats.places import Places, find_places
from ortho_core.pairs.images import SUFFIXES
from ortho_core.pairs.listing import Listing, count, some
from ortho_core.pairs.rows import Format, LayoutName, PairFields
from ortho_core.pairs.splits import split_of, wanted
from ortho_core.storage.store import Store

T = TypeVar("T")
#: Suffixes of images, if the listing has no image.
USUAL_SUFFIXES = [".jpg", ".png", ".webp", ".jpeg"]
#: Folder names of kohya's trainer: the repeats of the images per epoch, and their subject.
REPEATS = re.compile(r"(?:.*/)?[0-9]+_[^/]+")


@dataclass(frozen=True)
class Reading:
    """One way to read a folder, and the reasons against it."""

    layout: LayoutName
    #: `12 images with a caption file (.txt) each`.
    what: str
    against: tuple[str, ...] = ()
    #: Whether files contain the prompts. A reading with prompts from folder names only has lower priority.
    stated: bool = True


@dataclass
class Opened:
    """An opened pair set, and the facts to report about it."""

    root: Store
    format: Format
    #: The kind of the set: `images with caption files`.
    what: str
    #: The source of the prompts.
    prompts: str
    notes: list[str] = field(default_factory=list)
    #: Kinds of files that are not read, each with number and reason.
    aside: list[str] = field(default_factory=list)
    #: The word for a row: `image`, or `row` for a row of a file.
    unit: str = "image"
    #: Number of images in the set's folders, if it is known and may differ from the number of rows.
    images: int | None = None


@runtime_checkable
class Layout(Protocol):
    """One way in which pairs are stored."""

    #: Its name for `--layout`.
    name: LayoutName
    #: Its name in messages: `class folders`.
    what: str
    #: The options that it supports.
    options: frozenset[str]

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        """The reading, if the folder may have this layout. Only names and the first bytes of files are read."""
        ...

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        """Open the set. Raises UserError if there is nothing to open."""
        ...


def of_split(items: Iterable[T], path: Callable[[T], str], split: str | None, where: str) -> tuple[list[T], list[str]]:
    """The items of the requested split (None: all), and notes about that.

    Raises NoPairSet if there is no such split.
    """
    by_split: dict[str | None, list[T]] = {}
    items = list(items)
    for item in items:
        by_split.setdefault(split_of(path(item)), []).append(item)
    named = sorted(name for name in by_split if name is not None)
    if split is None:
        return items, [f"the splits {', '.join(named)} are all read (--split names one)"] if len(named) > 1 else []
    if wanted(split) in by_split:
        return by_split[wanted(split)], [f"split {wanted(split)}"]
    with_folder = [item for item in items if split in path(item).split("/")]
    if with_folder:
        return with_folder, [f"split {split}"]
    has = f"it has {', '.join(named)}" if named else "no folder or file in it has the name of a split"
    raise NoPairSet(f"no split {split!r} in {where}: {has}")


def own_places(file: str) -> Places:
    """Places for paths that are relative to the file's own folder."""
    return Places(file.rpartition("/")[0])


def places_in(listing: Listing, file: str, paths: list[Any]) -> Places | None:
    """The places of the images that a file names: relative to its own folder, the set's folder, or a folder of images in these.
    None: not found in any.
    """
    folder = file.rpartition("/")[0]
    near = [
        f.path for f in listing.folders if f.path and "/" not in f.path.removeprefix(f"{folder}/" if folder else "")
    ]
    kinds = [suffix for suffix, _ in listing.suffixes.most_common() if suffix in SUFFIXES] or USUAL_SUFFIXES
    suffixes = [form for suffix in kinds for form in (suffix, suffix.upper())]
    written = [path.get("path") if isinstance(path, dict) else path for path in paths]
    return find_places(listing.root, written, [folder, "", *near], suffixes)


def no_images_found(file: str, paths: list[Any]) -> str:
    """The message if `places_in` finds nothing."""
    first = next((path for path in paths if isinstance(path, str) and path), None)
    if first is None:
        return f"{file} names no images in its first rows"
    hint = "URLs are not downloaded" if "://" in first else "give the folder that paths start from with --image-root"
    return f"none of the first images of {file} was found, for example {first[:100]!r} ({hint})"


def check_options(layout: Layout, fields: PairFields, where: str) -> None:
    """Raises UserError for an option that does not apply to such a pair set."""
    lacking = {"caption": "no choice of captions", "prompt": "prompts of their own", "split": "no splits"}
    for name, option in PairFields.model_fields.items():
        if mark_of(option) is conduct:  # limits apply to every set
            continue
        if name not in ("layout", "part") and getattr(fields, name) is not None and name not in layout.options:
            raise UserError(
                f"--{name.replace('_', '-')}: {where} contains {layout.what}, which have {lacking.get(name, 'no fields')}; "
                "leave it out"
            )


def rows_aside(listing: Listing, captions: bool = True) -> list[str]:
    """Notes on files of rows and of captions, for layouts that do not read them."""
    aside = [f"{len(files)} {suffix}" for suffix, files in sorted(listing.files.items())]
    unread = sum(listing.captions.values()) + listing.orphans if captions else 0
    return [*aside, count(unread, "caption file")] if unread else aside


def left_aside(listing: Listing) -> list[str]:
    """Notes on files and folders that no layout reads, with their numbers."""
    aside = [f"{number} {suffix} (no decoder)" for suffix, number in listing.undecoded.most_common()]
    aside += [f"{path}/ ({kind})" for path, kind in list(listing.own.items())[:3]]
    if len(listing.own) > 3:
        aside.append(f"{len(listing.own) - 3} more such folders")
    if listing.unreadable:
        where, why = next(iter(listing.unreadable.items()))
        aside.append(f"{count(len(listing.unreadable), 'folder')} that cannot be read ({where}: {why})")
    if listing.links:
        aside.append(f"{count(len(listing.links), 'linked folder')} ({some(listing.links)}: links are not followed)")
    if listing.nowhere:
        aside.append(f"{count(len(listing.nowhere), 'name')} ({some(listing.nowhere)}: not a file)")
    if listing.hidden:
        aside.append(count(listing.hidden, "hidden name"))
    return aside
