"""Read the original files of well-known sets of labelled images as arrays of pixels and labels. Pickled files are not read.

Axes: n images of a file, Y × X pixels, grey or × 3.
"""

import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ortho_core.errors import UserError, needed
from ortho_core.storage.store import Store
from ortho_core.text.parsing import parse_json

Split = Literal["train", "test"]

#: The classes of CIFAR-10 by number. Its original download names them; the common repackings do not.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@runtime_checkable
class ClassFiles(Protocol):
    """The files of one split of a set, of one kind. Methods raise UserError, naming the file, for damaged files."""

    #: Names of the image files, in order.
    files: list[str]
    #: The names of the classes by number; empty if the format has none.
    classes: tuple[str, ...]

    def images(self, file: str) -> np.ndarray:
        """uint8, (n, Y, X) grey or (n, Y, X, 3)."""
        ...

    def labels(self, file: str) -> np.ndarray:
        """(n,) int64, one per image."""
        ...

    def rows(self, file: str) -> range:
        """The numbers of the file's images that belong to the split."""
        ...


def names_labelled_files(names: Iterable[str]) -> bool:
    """Whether one of the names belongs to a file of labelled images, pickled ones included."""
    return any(_is_pickled(name) or any(kind.recognises(name) for kind in LABELLED_KINDS) for name in names)


def _is_pickled(name: str) -> bool:
    return name == "batches.meta" or re.fullmatch("data_batch_[0-9]+", name) is not None


def find_class_files(root: Store, split: Split) -> ClassFiles | None:
    """The labelled images directly in a folder; None if it has none of a known kind.

    Raises UserError if the split is missing, or if the files are pickled.
    """
    names = root.names()
    for kind in LABELLED_KINDS:
        if any(kind.recognises(name) for name in names):
            class_files: ClassFiles = kind(root, names, split)
            if not class_files.files:
                raise UserError(f"{root.location} has no {split} split: {kind.missing[split]} is missing")
            return class_files
    if any(map(_is_pickled, names)):
        raise UserError(
            f"{root.location} contains CIFAR's Python version, which is pickled and not read; accepted: the binary version "
            "(data_batch_1.bin, ...) from the same page"
        )
    return None


class IdxFiles:
    """MNIST's own format: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, gzipped or not; `t10k-` is the test split."""

    pattern = re.compile(r"(?:.*-)?(train|t10k|test)-images[-.]idx3-ubyte(\.gz)?")
    missing: ClassVar[dict[str, str]] = {
        "train": "train-images-idx3-ubyte (or .gz)",
        "test": "t10k-images-idx3-ubyte (or .gz)",
    }
    classes: tuple[str, ...] = ()

    @classmethod
    def recognises(cls, name: str) -> bool:
        return cls.pattern.fullmatch(name) is not None

    def __init__(self, root: Store, names: list[str], split: Split) -> None:
        self.root = root
        prefixes = {"train": ("train",), "test": ("t10k", "test")}[split]
        files = {name: match[1] for name in names if (match := self.pattern.fullmatch(name)) and match[1] in prefixes}
        # An unpacked download may have a file both with and without .gz: it is read once.
        self.files = [name for name in files if not (name.endswith(".gz") and name.removesuffix(".gz") in files)]

    def images(self, file: str) -> np.ndarray:
        return self._array(file, 3)

    def labels(self, file: str) -> np.ndarray:
        name = file.replace("images", "labels").replace("idx3", "idx1")
        names = self.root.names()
        others = (name, name + ".gz", name.removesuffix(".gz"))
        labels = next((other for other in others if other in names), None)
        if labels is None:
            raise UserError(f"{self.root.location}/{file} has no labels beside it: {name} does not exist")
        return self._array(labels, 1).astype(np.int64)

    def rows(self, file: str) -> range:
        return range(len(self.labels(file)))

    def _array(self, file: str, axes: int) -> np.ndarray:
        """Read an IDX file: two zeros, the type (8: uint8), the number of axes, their lengths (big-endian), the data."""
        content, where = self.root.read(file), f"{self.root.location}/{file}"
        if file.endswith(".gz"):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{where} is not a complete gzip file: {error}") from error
        if content[:4] != bytes([0, 0, 8, axes]):
            raise UserError(f"{where} is not an IDX file of bytes with {axes} axes: it begins with {content[:4].hex()}")
        start = 4 + 4 * axes
        if len(content) < start:
            raise UserError(f"{where} has {len(content)} bytes, less than the header of an IDX file")
        shape = struct.unpack(f">{axes}I", content[4:start])
        if len(content) - start != math.prod(shape):
            expected = "×".join(map(str, shape))
            raise UserError(f"{where} has {len(content) - start} bytes of data, but its header needs {expected}")
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


class CifarFiles:
    """CIFAR-10's binary version: records of a label and the red, green and blue planes of 32×32 pixels."""

    pattern = re.compile(r"(data_batch_[0-9]+|test_batch)\.bin")
    missing: ClassVar[dict[str, str]] = {"train": "data_batch_1.bin", "test": "test_batch.bin"}
    record = 1 + 3 * 32 * 32

    @classmethod
    def recognises(cls, name: str) -> bool:
        return cls.pattern.fullmatch(name) is not None

    def __init__(self, root: Store, names: list[str], split: Split) -> None:
        self.root = root
        self.files = _in_order(n for n in names if self.recognises(n) and n.startswith("test") == (split == "test"))
        self.classes = CIFAR10

    def _records(self, file: str) -> np.ndarray:
        content = self.root.read(file)
        if not content or len(content) % self.record:
            raise UserError(
                f"{self.root.location}/{file} has {len(content)} bytes, not a multiple of CIFAR-10's records of {self.record}"
            )
        return np.frombuffer(content, np.uint8).reshape(-1, self.record)

    def images(self, file: str) -> np.ndarray:
        return self._records(file)[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    def labels(self, file: str) -> np.ndarray:
        return self._records(file)[:, 0].astype(np.int64)

    def rows(self, file: str) -> range:
        return range(self.root.size(file) // self.record)


class SheetFiles:
    """PNG sheets with one image per line of pixels, `data_batch_1.png` and so on, and one JSON list of all labels."""

    pattern = re.compile(r"(data_batch_[0-9]+|test_batch)\.png")
    missing: ClassVar[dict[str, str]] = {"train": "data_batch_1.png", "test": "test_batch.png"}

    @classmethod
    def recognises(cls, name: str) -> bool:
        return cls.pattern.fullmatch(name) is not None

    def __init__(self, root: Store, names: list[str], split: Split) -> None:
        self.root, self.split, self.names = root, split, names
        self.files = _in_order(n for n in names if self.recognises(n) and n.startswith("test") == (split == "test"))
        self.classes = CIFAR10

    def images(self, file: str) -> np.ndarray:
        where = f"{self.root.location}/{file}"
        try:
            with Image.open(io.BytesIO(self.root.read(file)), formats=["PNG"]) as sheet:
                pixels = np.asarray(sheet if sheet.mode in ("L", "RGB") else sheet.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{where} does not decode: {error}") from error
        side = math.isqrt(pixels.shape[1])
        if side**2 != pixels.shape[1]:
            raise UserError(f"{where} is {pixels.shape[1]} pixels wide; accepted: a square number, one image per line")
        return pixels.reshape(len(pixels), side, side, *pixels.shape[2:])

    def _count(self, file: str) -> int:
        """The number of images of a sheet, from its header."""
        content = self.root.read(file, 0, 24)
        if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
            raise UserError(f"{self.root.location}/{file} is not a PNG file")
        return int(struct.unpack(">I", content[20:24])[0])

    def labels(self, file: str) -> np.ndarray:
        # The second spelling is that of the npm package with these files.
        accepted = [f"{self.split}_{word}.json" for word in ("labels", "lables")]
        name = next((name for name in accepted if name in self.names), None)
        if name is None:
            raise UserError(f"{self.root.location} has no labels for its sheets: {' or '.join(accepted)} is missing")
        counts = [self._count(other) for other in self.files]
        labels = _numbers(_json(self.root, name), f"{self.root.location}/{name}")
        if len(labels) != sum(counts):
            raise UserError(
                f"{self.root.location}/{name} has {len(labels)} labels, but the {self.split} sheets have {sum(counts)} images"
            )
        at = self.files.index(file)
        return labels[sum(counts[:at]) : sum(counts[: at + 1])]

    def rows(self, file: str) -> range:
        return range(self._count(file))


class JsonFiles:
    """One JSON file per class, `0.json` and so on: `{"data": [[pixel, ...], ...]}` with square grey images. There is no separate
    test split: it is the last seventh of each class (for Fashion-MNIST 1,000 of 7,000).
    """

    pattern = re.compile(r"[0-9]+\.json")
    missing: ClassVar[dict[str, str]] = {"train": "0.json", "test": "0.json"}
    classes: tuple[str, ...] = ()

    @classmethod
    def recognises(cls, name: str) -> bool:
        return cls.pattern.fullmatch(name) is not None

    def __init__(self, root: Store, names: list[str], split: Split) -> None:
        self.root, self.split = root, split
        self.files = _in_order(n for n in names if self.recognises(n))
        self._counts: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counts": {}}

    def images(self, file: str) -> np.ndarray:
        where, content = f"{self.root.location}/{file}", _json(self.root, file)
        rows = content.get("data") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise UserError(f'{where} is not {{"data": [[pixel, ...], ...]}}')
        rows = [row for row in rows if row]  # the published files contain empty rows
        side = math.isqrt(len(rows[0])) if rows else 0
        if not rows or {len(row) for row in rows} != {side**2}:
            raise UserError(
                f"{where} contains images of {sorted({len(r) for r in rows})} pixels; accepted: one square number"
            )
        pixels = _numbers([p for row in rows for p in row], where)
        if pixels.min() < 0 or pixels.max() > 255:
            raise UserError(f"{where} contains pixels from {pixels.min()} to {pixels.max()}; accepted: 0 to 255")
        self._counts[file] = len(rows)
        return pixels.astype(np.uint8).reshape(len(rows), side, side)

    def labels(self, file: str) -> np.ndarray:
        return np.full(self._count(file), int(file.removesuffix(".json")), np.int64)

    def rows(self, file: str) -> range:
        n = self._count(file)
        return range(n - n // 7) if self.split == "train" else range(n - n // 7, n)

    def _count(self, file: str) -> int:
        if file not in self._counts:
            self.images(file)
        return self._counts[file]


LABELLED_KINDS: tuple[Any, ...] = (IdxFiles, CifarFiles, SheetFiles, JsonFiles)


def _in_order(names: Any) -> list[str]:
    """Sorted by the number in the name: 10 after 9."""
    return sorted(names, key=lambda name: [int(n) for n in re.findall("[0-9]+", name)])


def _json(root: Store, file: str) -> Any:
    return needed(parse_json, root.read(file), f"{root.location}/{file}")


def _numbers(values: Any, where: str) -> np.ndarray:
    """A list of whole numbers as an array (n,) int64."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # lists of several lengths
        array = np.empty(0)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{where} is not a list of whole numbers")
    return array.astype(np.int64)
