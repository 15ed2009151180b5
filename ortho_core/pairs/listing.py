"""What lies in a folder: one walk over its names, from which every layout judges whether the rows are kept its way."""

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

#: Pictures that people have and that nothing here decodes (those with a plugin for Pillow are decoded where it is installed).
PICTURES = (
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".eps", ".pdf", ".psb", ".ai", ".exr", ".hdr", ".jxr", ".djvu"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw", ".xcf", ".mp4", ".mov", ".webm"),
)
#: Pictures that no decoder here reads.
UNDECODED = frozenset(PICTURES) - SUFFIXES
#: Files of many rows, by suffix.
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".csv", ".tsv", ".json")
COLUMN_SUFFIXES = (".parquet", ".arrow", ".tar")
#: What a tar file is called that has been compressed.
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2", ".zip", ".7z", ".rar")
#: Folders of what a control network is fed with, and of masks: never targets. `no_mask` and `normal` are classes.
CONTROL = re.compile(
    r"(?:(?!with|without|no).*[-_ ])?(?:control|conditioning|condition|mask)(?:s|[-_ ]?images?|[-_ ]?maps?)?|control[-_ ]?net|"
    rf"(?:{CONDITIONS})(?:[-_ ]?(?:images?|maps?))?|normal[-_ ]?(?:images?|maps?)",
    re.IGNORECASE,
)
#: Text files of no image that may be files of rows: so many are kept by name.
MOST_TEXTS = 20
#: Files of one kind that are kept by name.
MOST_FILES = 100_000


@dataclass(slots=True)
class Folder:
    """What lies directly in one folder that has images."""

    path: str
    images: int
    #: Images that have a caption file.
    captioned: int = 0
    #: Images that belong to another one of the folder, as masks do.
    beside: int = 0


@dataclass
class Listing:
    """What lies in a folder and below. Memory grows with the folders and the files of rows, not with the images."""

    root: Store
    folders: list[Folder] = field(default_factory=list)
    #: Files of rows by suffix, as (name, bytes where known).
    files: dict[str, list[tuple[str, int | None]]] = field(default_factory=dict)
    #: How often each suffix occurs, hidden files left out.
    suffixes: Counter[str] = field(default_factory=Counter)
    #: Caption files with an image, by suffix as it is written.
    captions: Counter[str] = field(default_factory=Counter)
    #: Caption files without an image of their name beside them, by folder and suffix as it is written.
    texts: dict[str, Counter[str]] = field(default_factory=dict)
    #: The first of them, by name.
    first_texts: list[str] = field(default_factory=list)
    #: Images with text files of several suffixes.
    doubles: int = 0
    hidden: int = 0
    #: Pictures that nothing here decodes, by suffix.
    undecoded: Counter[str] = field(default_factory=Counter)
    #: Folders that are no pairs (what this program wrote, models), and what each is.
    own: dict[str, str] = field(default_factory=dict)
    #: Folders that cannot be read, and why.
    unreadable: dict[str, str] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    #: Names that lead to no file: links to nowhere, pipes.
    nowhere: list[str] = field(default_factory=list)
    #: Whether the folder itself has files of labelled images, such as MNIST's.
    labelled: bool = False
    #: Folders seen, the folder itself included; none where a file was named.
    seen: int = 0
    #: What the first rows of files say, once it was looked at.
    looks: dict[str, Looks] = field(default_factory=dict)
    #: Where the images are that a field of a file names, once they were looked for; None: nowhere.
    places: dict[tuple[str, str], Places | None] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return sum(folder.images for folder in self.folders)

    @property
    def orphans(self) -> int:
        return sum(map(Counter.total, self.texts.values()))

    def of(self, *suffixes: str) -> list[tuple[str, int]]:
        """Files of rows with these suffixes, as (name, bytes), sorted by name."""
        found = [file for suffix in suffixes for file in self.files.get(suffix, [])]
        return sorted((name, self.root.size(name) if size is None else size) for name, size in found)

    def names_of(self, *suffixes: str) -> list[str]:
        return sorted(name for suffix in suffixes for name, _ in self.files.get(suffix, []))

    def inventory(self) -> str:
        """What lies there, in a few words: `40 .jpg, 40 .txt in 2 folders`."""
        if not self.suffixes:
            return "nothing"
        most = self.suffixes.most_common(5)
        rest = sum(self.suffixes.values()) - sum(number for _, number in most)
        words = [f"{number} {suffix or 'without a suffix'}" for suffix, number in most]
        lies = ", ".join([*words, f"{rest} others"] if rest else words) + f" in {count(self.seen, 'folder')}"
        alone = self.orphans if self.images and not self.captions else 0
        return lies + (f" ({count(alone, 'text file')} of no image's name)" if alone else "")


def scan(root: Store) -> Listing:
    """Walk a folder. One folder's names are in memory at a time."""
    listing = Listing(root)
    for entries in root.walk():
        _prune(listing, entries)
        if entries.unreadable is not None:
            listing.unreadable[entries.path or "."] = entries.unreadable
            continue
        if (what := own_folder(root, entries.path, entries.files.keys())) is not None:
            listing.own[entries.path] = what
            entries.folders.clear()
            continue
        _add(listing, entries)
    return listing


def _prune(listing: Listing, entries: Entries) -> None:
    """Leave out what is hidden, and what macOS puts into archives."""
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
    """Give each image its caption files; JSON files of no image may be files of rows. Returns how many images have one."""
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
    """Whether a folder, or one above it, is named as those of masks and of conditions are."""
    return any(CONTROL.fullmatch(part) for part in path.split("/"))


def count(number: int, what: str, plural: str | None = None) -> str:
    return f"{number} {what if number == 1 else plural or what + 's'}"


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
