"""List a folder in one walk over its names. Each layout decides from this listing whether it can read the folder."""

import re
from collections import Counter
from dataclasses import dataclass, field

from ortho_core.pairs.formats.image_files import CAPTIONS, CONDITIONS, split_images, stem_of
from ortho_core.pairs.formats.places import Places
from ortho_core.pairs.formats.row_files import Looks
from ortho_core.pairs.images import SUFFIXES
from ortho_core.pairs.labelled.files import names_labelled_files
from ortho_core.pairs.own_folders import own_folder
from ortho_core.storage.store import Entries, Store

#: Picture formats that are not decoded, except those for which a Pillow plugin is installed.
PICTURES = (
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".eps", ".pdf", ".psb", ".ai", ".exr", ".hdr", ".jxr", ".djvu"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw", ".xcf", ".mp4", ".mov", ".webm"),
)
#: Those of them without a decoder.
UNDECODED = frozenset(PICTURES) - SUFFIXES
#: Suffixes of files with many rows.
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".csv", ".tsv", ".json")
COLUMN_SUFFIXES = (".parquet", ".arrow", ".tar")
#: Suffixes of compressed archives.
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2", ".zip", ".7z", ".rar")
#: Names of folders with the inputs of control networks, or with masks: never targets. `no_mask` and `normal` are classes.
CONTROL = re.compile(
    r"(?:(?!with|without|no).*[-_ ])?(?:control|conditioning|condition|mask)(?:s|[-_ ]?images?|[-_ ]?maps?)?|control[-_ ]?net|"
    rf"(?:{CONDITIONS})(?:[-_ ]?(?:images?|maps?))?|normal[-_ ]?(?:images?|maps?)",
    re.IGNORECASE,
)
#: Largest number of text files without an image whose names are kept; they may be files of rows.
MOST_TEXTS = 20
#: Largest number of files of one suffix whose names are kept.
MOST_FILES = 100_000


@dataclass(slots=True)
class Folder:
    """The direct contents of one folder with images."""

    path: str
    images: int
    #: Number of images that have a caption file.
    captioned: int = 0
    #: Number of images that belong to another image of the folder, such as masks.
    beside: int = 0


@dataclass
class Listing:
    """The contents of a folder and all folders below. Memory grows with folders and files of rows, not with images."""

    root: Store
    folders: list[Folder] = field(default_factory=list)
    #: Files of rows by suffix, as (name, size in bytes or None).
    files: dict[str, list[tuple[str, int | None]]] = field(default_factory=dict)
    #: Number of files per suffix, without hidden files.
    suffixes: Counter[str] = field(default_factory=Counter)
    #: Number of caption files with an image, by suffix in its written case.
    captions: Counter[str] = field(default_factory=Counter)
    #: Number of caption files without an image of the same name, by folder and suffix in its written case.
    texts: dict[str, Counter[str]] = field(default_factory=dict)
    #: The names of the first of them.
    first_texts: list[str] = field(default_factory=list)
    #: Number of images with text files of several suffixes.
    doubles: int = 0
    hidden: int = 0
    #: Number of pictures without a decoder, by suffix.
    undecoded: Counter[str] = field(default_factory=Counter)
    #: Folders that are not pair sets (outputs of Ortho, models), with the kind of each.
    own: dict[str, str] = field(default_factory=dict)
    #: Folders that cannot be read, with the reason.
    unreadable: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    #: Names that are not files: broken links, pipes.
    nowhere: list[str] = field(default_factory=list)
    #: Whether the folder itself has files of labelled images, such as MNIST's.
    labelled: bool = False
    #: Number of folders, including the folder itself; 0 if the location is a file.
    seen: int = 0
    #: The first rows of files that were opened, by file.
    looks: dict[str, Looks] = field(default_factory=dict)
    #: The places of the images that a field names, by (file, field), once they were searched; None: not found.
    places: dict[tuple[str, str], Places | None] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return sum(folder.images for folder in self.folders)

    @property
    def orphans(self) -> int:
        return sum(map(Counter.total, self.texts.values()))

    def of(self, *suffixes: str) -> list[tuple[str, int]]:
        """Files of rows with these suffixes, as (name, bytes), sorted by name."""
        files = [file for suffix in suffixes for file in self.files.get(suffix, [])]
        return sorted((name, self.root.size(name) if size is None else size) for name, size in files)

    def names_of(self, *suffixes: str) -> list[str]:
        return sorted(name for suffix in suffixes for name, _ in self.files.get(suffix, []))

    def inventory(self) -> str:
        """The contents in a few words: `40 .jpg, 40 .txt in 2 folders`."""
        if not self.suffixes:
            return "nothing"
        most = self.suffixes.most_common(5)
        rest = sum(self.suffixes.values()) - sum(number for _, number in most)
        words = [f"{number} {suffix or 'without a suffix'}" for suffix, number in most]
        contents = ", ".join([*words, f"{rest} others"] if rest else words) + f" in {count(self.seen, 'folder')}"
        unmatched = self.orphans if self.images and not self.captions else 0
        return contents + (f" ({count(unmatched, 'text file')} without an image of that name)" if unmatched else "")


def scan(root: Store) -> Listing:
    """Walk a folder. The names of only one folder are in memory at a time."""
    listing = Listing(root)
    for entries in root.walk():
        _prune(listing, entries)
        if entries.unreadable is not None:
            listing.unreadable[entries.path or "."] = entries.unreadable
            continue
        if (kind := own_folder(root, entries.path, entries.files.keys())) is not None:
            listing.own[entries.path] = kind
            entries.folders.clear()
            continue
        _add(listing, entries)
    return listing


def _prune(listing: Listing, entries: Entries) -> None:
    """Leave out hidden names, and the folders that macOS adds to archives."""
    listing.hidden += sum(name.startswith(".") for name in (*entries.files, *entries.folders))
    entries.folders[:] = [name for name in entries.folders if not name.startswith(".") and name != "__MACOSX"]
    listing.links += [_join(entries.path, name) for name in entries.links if not name.startswith(".")]
    listing.nowhere += [_join(entries.path, name) for name in entries.nowhere if not name.startswith(".")]


def _add(listing: Listing, entries: Entries) -> None:
    suffixes: Counter[str] = Counter()
    texts: dict[str, list[str]] = {}
    candidates: list[str] = []
    named = [name for name in entries.files if not name.startswith(".")]
    for name in named:
        at = name.rfind(".")
        written = name[at:] if at > 0 else ""
        suffix = written.lower()
        suffixes[suffix] += 1
        if suffix in CAPTIONS or suffix == ".json":
            texts.setdefault(written, []).append(name)
        elif suffix in TABLE_SUFFIXES or suffix in COLUMN_SUFFIXES:
            candidates.append(name)
        elif suffix in UNDECODED:
            listing.undecoded[suffix] += 1
    listing.seen += 1
    listing.suffixes += suffixes
    if not entries.path:
        listing.labelled = names_labelled_files(named)
    images, beside = split_images(named)
    if images:
        folder = Folder(entries.path, len(images), beside=len(beside))
        listing.folders.append(folder)
    folder_captions = _match(listing, entries.path, images, texts, candidates)
    if images:
        folder.captioned = folder_captions
    for name in candidates:
        suffix = name[name.rfind(".") :].lower()
        kept = listing.files.setdefault(suffix, [])
        if len(kept) < MOST_FILES:
            kept.append((_join(entries.path, name), entries.files[name]))


def _match(listing: Listing, path: str, images: list[str], texts: dict[str, list[str]], candidates: list[str]) -> int:
    """Match caption files to images; JSON files without an image become `candidates` for files of rows. Returns the number of
    images with a caption file.
    """
    if not texts:
        return 0
    by_stem = {stem_of(name) for name in images}
    by_name = set(images) if by_stem else set()
    with_text: Counter[str] = Counter()
    with_json: set[str] = set()
    for written, names in texts.items():
        matched = 0
        for name in names:
            stem = stem_of(name)
            image = stem if stem in by_stem else stem_of(stem) if stem in by_name else None
            if image is None:
                if written.lower() == ".json":
                    candidates.append(name)
                else:
                    listing.texts.setdefault(path, Counter())[written] += 1
                    if len(listing.first_texts) < MOST_TEXTS:
                        listing.first_texts.append(_join(path, name))
                continue
            matched += 1
            if written.lower() == ".json":
                with_json.add(image)
            else:
                with_text[image] += 1
        if matched:
            listing.captions[written] += matched
    listing.doubles += sum(number > 1 for number in with_text.values())
    stems = with_text.keys() | with_json
    return sum(stem_of(name) in stems for name in images)


def is_control(path: str) -> bool:
    """Whether a folder, or one above it, has a name for masks or for inputs of control networks."""
    return any(CONTROL.fullmatch(part) for part in path.split("/"))


def count(number: int, what: str, plural: str | None = None) -> str:
    return f"{number} {what if number == 1 else plural or what + 's'}"


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
