"""What a layout is: how it is recognised in a folder, and what it opens."""

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
#: Suffixes of images, where no image is seen.
USUAL_SUFFIXES = [".jpg", ".png", ".webp", ".jpeg"]
#: Folders as kohya's trainer names them: how often it repeats the images in an epoch, and what they are of.
REPEATS = re.compile(r"(?:.*/)?[0-9]+_[^/]+")


@dataclass(frozen=True)
class Reading:
    """One way to read a folder, and what speaks against it."""

    layout: LayoutName
    #: `12 images with a caption file (.txt) each`.
    what: str
    against: tuple[str, ...] = ()
    #: Whether the rows are written down somewhere. What is only read off the names of folders yields to that.
    stated: bool = True


@dataclass
class Opened:
    """A pair set, and what there is to say of it."""

    root: Store
    format: Format
    #: What was read: `images with caption files`.
    what: str
    #: Where the prompts come from.
    prompts: str
    notes: list[str] = field(default_factory=list)
    #: What is not read, as (how many, what, why).
    aside: list[str] = field(default_factory=list)
    #: What a row is: an `image`, or a `row` of a file that names one.
    unit: str = "image"
    #: Images that lie there, where that is known and need not be the number of rows.
    images: int | None = None


@runtime_checkable
class Layout(Protocol):
    """One way in which people keep pairs."""

    #: What `--layout` calls it.
    name: LayoutName
    #: What messages call it: `class folders`.
    what: str
    #: The options that it understands.
    options: frozenset[str]

    def recognise(self, listing: Listing, fields: PairFields) -> Reading | None:
        """The reading, if anything lies there that it could be made of. Only names and the heads of files are looked at."""
        ...

    def open(self, listing: Listing, fields: PairFields) -> Opened:
        """Raises UserError if there is nothing to open."""
        ...


def of_split(items: Iterable[T], path: Callable[[T], str], split: str | None, where: str) -> tuple[list[T], list[str]]:
    """The items of the split that is asked for, or all of them, and what there is to say of that.

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
    has = f"it has {', '.join(named)}" if named else "no folder or file there is named as a split is"
    raise NoPairSet(f"no split {split!r} in {where}: {has}")


def own_places(file: str) -> Places:
    """Paths that start from the file's own folder."""
    return Places(file.rpartition("/")[0])


def places_in(listing: Listing, file: str, paths: list[Any]) -> Places | None:
    """Where the images are that a file names: in its own folder, the set's, or one of images in these. None: in none."""
    folder = file.rpartition("/")[0]
    near = [
        f.path for f in listing.folders if f.path and "/" not in f.path.removeprefix(f"{folder}/" if folder else "")
    ]
    kinds = [suffix for suffix, _ in listing.suffixes.most_common() if suffix in SUFFIXES] or USUAL_SUFFIXES
    suffixes = [form for suffix in kinds for form in (suffix, suffix.upper())]
    written = [path.get("path") if isinstance(path, dict) else path for path in paths]
    return find_places(listing.root, written, [folder, "", *near], suffixes)


def no_images_found(file: str, paths: list[Any]) -> str:
    """What there is to say where `places_in` finds nothing."""
    first = next((path for path in paths if isinstance(path, str) and path), None)
    if first is None:
        return f"{file} names no images in its first rows"
    why = "addresses are not fetched" if "://" in first else "--image-root says where paths start from"
    return f"none of the first images of {file} is found, such as {first[:100]!r} ({why})"


def check_options(layout: Layout, fields: PairFields, where: str) -> None:
    """Raises UserError for an option that says nothing of such a pair set."""
    lacking = {"caption": "no choice of captions", "prompt": "prompts of their own", "split": "no splits"}
    for name, option in PairFields.model_fields.items():
        if mark_of(option) is conduct:  # limits, which any set has
            continue
        if name not in ("layout", "part") and getattr(fields, name) is not None and name not in layout.options:
            raise UserError(
                f"--{name.replace('_', '-')}: {where} holds {layout.what}, which have {lacking.get(name, 'no fields')}; "
                "leave it out"
            )


def rows_aside(listing: Listing, captions: bool = True) -> list[str]:
    """Files of rows, and of captions, where prompts and images come from elsewhere."""
    aside = [f"{len(files)} {suffix}" for suffix, files in sorted(listing.files.items())]
    found = sum(listing.captions.values()) + listing.orphans if captions else 0
    return [*aside, count(found, "caption file")] if found else aside


def left_aside(listing: Listing) -> list[str]:
    """What no layout reads, with its number."""
    aside = [f"{number} {suffix} (no decoder)" for suffix, number in listing.undecoded.most_common()]
    aside += [f"{path}/ ({what})" for path, what in list(listing.own.items())[:3]]
    if len(listing.own) > 3:
        aside.append(f"{len(listing.own) - 3} more such folders")
    if listing.unreadable:
        where, why = next(iter(listing.unreadable.items()))
        aside.append(f"{count(len(listing.unreadable), 'folder')} that cannot be read ({where}: {why})")
    if listing.links:
        aside.append(f"{count(len(listing.links), 'linked folder')} ({some(listing.links)}: links are not followed)")
    if listing.nowhere:
        aside.append(f"{count(len(listing.nowhere), 'name')} ({some(listing.nowhere)}: no file)")
    if listing.hidden:
        aside.append(count(listing.hidden, "hidden name"))
    return aside
