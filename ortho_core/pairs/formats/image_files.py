"""Image files in folders as rows: the prompt is in a text file beside each image, or is the folder's name, or one for all."""

import hashlib
import itertools
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ortho_core.errors import BadRow
from ortho_core.pairs.captions import CaptionChoice, as_captions
from ortho_core.pairs.formats.text_lines import as_text
from ortho_core.pairs.images import SUFFIXES
from ortho_core.pairs.names import USUAL_PROMPTS, usual
from ortho_core.pairs.rows import Cut, PairRecord, RecordsHaveAll, Shard
from ortho_core.storage.store import OutsideRoot, Store
from ortho_core.text.parsing import NotParsedError, parse_json

#: A larger caption file, in bytes, is not read.
MAX_TEXT = 1 << 20
#: Number of threads that read caption files.
READS = 8
#: Number of caption files per task of a thread.
READ_TOGETHER = 16
#: Suffixes of caption files, the most usual first.
CAPTIONS = (".txt", ".caption", ".prompt", ".text")
#: Names of inputs of control networks.
CONDITIONS = "depth|canny|edges?|hed|lineart|scribbles?|poses?|openpose|seg|segmentation|normals|alpha"
#: Names of images, such as masks, that belong to the image with the first part of the name.
BESIDE = re.compile(
    rf"(.+?)[-_. ](masks?|masklabel|condlabel|control|cond|conditioning|normal|{CONDITIONS})", re.IGNORECASE
)


def is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in SUFFIXES and not name.startswith(".")


def stem_of(name: str) -> str:
    """A file's name without its suffix, in Unicode NFC: file systems differ in how they store é."""
    return unicodedata.normalize("NFC", name[: name.rfind(".")] if "." in name else name)


def split_images(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The images among the names of one folder, sorted, and those that belong to another image (masks)."""
    images = sorted(filter(is_image, names))
    suspects = [name for name in images if BESIDE.fullmatch(stem_of(name))]
    if not suspects:
        return images, []
    stems = {stem_of(name) for name in images}
    beside = {name for name in suspects if (match := BESIDE.fullmatch(stem_of(name))) and match[1] in stems}
    return [name for name in images if name not in beside], sorted(beside)


@runtime_checkable
class Prompts(Protocol):
    """The source of the prompts of images in a folder."""

    @property
    def field(self) -> str:
        """The name of the source in messages."""
        ...

    @property
    def in_files(self) -> bool:
        """Whether prompts are in files that must be read."""
        ...

    def of(self, root: Store, folder: str, name: str) -> Any:
        """The prompt of an image: a text or several. Raises BadRow."""
        ...

    def seal(self) -> str:
        """A text for the signature that identifies prompts that are not in files."""
        ...


@dataclass(frozen=True)
class FolderNames:
    """The prompt is the name of the folder, a class."""

    field: str = "class"
    in_files: bool = False

    def of(self, root: Store, folder: str, name: str) -> str:
        return folder

    def seal(self) -> str:
        return ""


@dataclass(frozen=True)
class OnePrompt:
    """One prompt for all images."""

    text: str
    field: str = "prompt"
    in_files: bool = False

    def of(self, root: Store, folder: str, name: str) -> str:
        return self.text

    def seal(self) -> str:
        return f"\0{self.text}"


@dataclass(frozen=True)
class CaptionFiles:
    """The prompt is in a file with the image's name and another suffix: text, or JSON with a field of a usual name."""

    #: In their written case, in the order of the search.
    suffixes: tuple[str, ...]
    choice: CaptionChoice | None = None
    #: The field in JSON files (None: one of a usual name).
    json_field: str | None = None
    #: By folder of images, the folder with its captions, if it is another one.
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    in_files: bool = True

    @property
    def field(self) -> str:
        return self.suffixes[0]

    def of(self, root: Store, folder: str, name: str) -> Any:
        folder = self.elsewhere.get(folder, folder)
        for candidate in self.candidates(name):
            try:
                content = root.read(root.contains(f"{folder}/{candidate}" if folder else candidate), 0, MAX_TEXT + 1)
            except FileNotFoundError:
                continue
            except OutsideRoot:
                raise BadRow("outside-root", f"{candidate} is outside {root.location}") from None
            return self.parse(content, candidate)
        return None

    def candidates(self, name: str) -> Iterator[str]:
        stem = name[: name.rfind(".")]
        for suffix in self.suffixes:
            forms = (stem, unicodedata.normalize("NFC", stem), unicodedata.normalize("NFD", stem), name)
            for form in dict.fromkeys(forms):
                yield form + suffix

    def parse(self, content: bytes, name: str) -> Any:
        if len(content) > MAX_TEXT:
            raise BadRow("too-large", f"{name} has more than {MAX_TEXT} bytes")
        try:
            text = as_text(content).strip()
        except UnicodeDecodeError as error:
            raise BadRow("not-text", f"{name} is neither UTF-8 nor UTF-16: {error}") from error
        if not name.lower().endswith(".json"):
            return as_captions(text, self.choice)
        try:
            values = parse_json(text)
        except NotParsedError as error:
            raise BadRow("not-json", f"{name} is not a JSON object: {error.why}") from error
        if not isinstance(values, dict):
            raise BadRow("not-json", f"{name} is a JSON {type(values).__name__}, not an object")
        fields = [self.json_field] if self.json_field else usual(values, USUAL_PROMPTS)
        return values.get(fields[0]) if fields else None

    def seal(self) -> str:
        return ""


class Names:
    """The names of a folder's images in one byte string, which needs less memory than a list."""

    def __init__(self, names: list[str]) -> None:
        encoded = [name.encode(errors="surrogateescape") for name in names]
        self.ends = np.cumsum([0, *map(len, encoded)])
        self.joined = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def from_to(self, start: int, end: int) -> Iterator[str]:
        for i in range(start, min(end, len(self))):
            yield self.joined[self.ends[i] : self.ends[i + 1]].decode(errors="surrogateescape")


class ImageFiles(RecordsHaveAll):
    """Folders of images, one after another. The names of only one folder are in memory at a time."""

    def __init__(self, root: Store, folders: list[str], prompts: Prompts) -> None:
        self.root, self.folders, self.prompts_from = root, folders, prompts
        self._counted: tuple[str, int] | None = None
        self._rows: int | None = None
        self._listed: tuple[str, Names] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "folders": [], "_counted": None, "_rows": None, "_listed": None}

    def names_in(self, folder: str) -> Names:
        listed = self._listed
        if listed is None or listed[0] != folder:
            images, _ = split_images(self.root.child(folder).names() if folder else self.root.names())
            listed = self._listed = folder, Names(images)
        return listed[1]

    def signature(self) -> str:
        digest = hashlib.sha256()
        for folder in self.folders:
            names = list(self.names_in(folder).from_to(0, len(self.names_in(folder))))
            digest.update("\0".join([folder, *names, ""]).encode(errors="surrogateescape"))
            if self.prompts_from.in_files:
                for prompt in self._prompts(folder, iter(names)):
                    digest.update(f"{prompt!r}\0".encode(errors="surrogatepass"))
        digest.update(self.prompts_from.seal().encode())
        return digest.hexdigest()

    def rows(self) -> int:
        if self._rows is None:
            self._rows = sum(len(self.names_in(folder)) for folder in self.folders)
        return self._rows

    def cuts(self, rows: int) -> Iterator[Cut]:
        for folder in self.folders:
            total = len(self.names_in(folder))
            for at in range(0, total, rows):
                yield Cut(folder, min(rows, total - at), at)

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        folder = shard.file
        names = list(self.names_in(folder).from_to(shard.offset, shard.offset + shard.span))
        fields = (self.prompts_from.field, "", None)
        for name, prompt in zip(names, self._prompts(folder, iter(names)), strict=True):
            path = f"{folder}/{name}" if folder else name
            bad = BadRow(prompt.reason, str(prompt), path) if isinstance(prompt, BadRow) else None
            yield bad or PairRecord(prompt, path, fields)

    def _prompts(self, folder: str, names: Iterator[str]) -> Iterator[Any]:
        """The prompt of each image, or a BadRow for its file."""

        def some(chunk: list[str]) -> list[Any]:
            return [self.prompt(folder, name) for name in chunk]

        if not self.prompts_from.in_files:
            yield from (self.prompt(folder, name) for name in names)
            return
        with ThreadPoolExecutor(READS) as pool:
            underway: deque[Future[list[Any]]] = deque()
            while chunk := list(itertools.islice(names, READ_TOGETHER)):
                underway.append(pool.submit(some, chunk))
                if len(underway) > 2 * READS:
                    yield from underway.popleft().result()
            while underway:
                yield from underway.popleft().result()

    def prompt(self, folder: str, name: str) -> Any:
        try:
            return self.prompts_from.of(self.root, folder, name)
        except BadRow as bad:
            return bad

    def fetch(self, image: str) -> None:
        return None
