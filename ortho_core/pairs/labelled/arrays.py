"""Sets of labelled images as pair sets: the prompt of an image is its class, by name, or by number if the set has no names."""

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.labelled.files import ClassFiles
from ortho_core.pairs.rows import Cut, PairRecord, RecordsHaveAll, Shard
from ortho_core.storage.store import Store

#: Bytes of pixels that are kept in memory: training reads rows from several files in turn.
KEPT_BYTES = 1 << 29


class ClassArrays(RecordsHaveAll):
    """Files with many images each. A record names an image as `FILE#NUMBER`; it is fetched as a PPM or PGM file.

    Each process that needs an image of a file reads the complete file.
    """

    def __init__(self, root: Store, files: ClassFiles) -> None:
        self.root, self.files = root, files
        self._pixels: dict[str, np.ndarray] = {}
        self._labels: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": {}, "_labels": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_lock": threading.Lock()}

    def signature(self) -> str:
        digest = hashlib.sha256()
        for file in self.files.files:
            content = hashlib.sha256(self.root.read(file)).hexdigest()
            labels = hashlib.sha256(self._labels_of(file).tobytes()).hexdigest()
            digest.update(f"{file}\0{content}\0{labels}\0{self.files.rows(file)}\0".encode())
        return digest.hexdigest()

    def rows(self) -> int:
        return sum(len(self.files.rows(file)) for file in self.files.files)

    def cuts(self, rows: int) -> Iterator[Cut]:
        for file in self.files.files:
            numbers = self.files.rows(file)
            for at in numbers[::rows]:
                yield Cut(file, min(rows, numbers.stop - at), at)

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        labels = self._labels_of(shard.file)
        for at in range(shard.offset, min(shard.offset + shard.span, len(labels))):
            # The row's name contains the class, which tells more than the file name.
            label = int(labels[at])
            yield PairRecord(self._prompt(label), f"{shard.file}#{at}", ("class", "", None), stem=str(label))

    def fetch(self, image: str) -> bytes:
        """The image that `FILE#NUMBER` names. Raises BadRow."""
        file, _, number = image.rpartition("#")
        if file not in self.files.files or not number.isdecimal():
            raise BadRow("missing-image", f"image {image[:200]!r} is not FILE#NUMBER of a file in {self.root.location}")
        pixels = self._pixels_of(file)
        if int(number) >= len(pixels):
            raise BadRow("missing-image", f"{file} has {len(pixels)} images, but no number {number}")
        return as_netpbm(pixels[int(number)])

    def _prompt(self, label: int) -> str:
        names = self.files.classes
        return names[label] if label < len(names) else str(label)

    def _labels_of(self, file: str) -> np.ndarray:
        with self._lock:
            if file not in self._labels:
                self._labels[file] = self.files.labels(file)
            return self._labels[file]

    def _pixels_of(self, file: str) -> np.ndarray:
        """The pixels of a file. Threads wait for each other, so that a file is not read twice. Raises UserError if the numbers of
        images and labels differ.
        """
        labels = self._labels_of(file)
        with self._lock:
            pixels = self._pixels.pop(file, None)
            if pixels is None:
                pixels = self.files.images(file)
                if len(pixels) != len(labels):
                    raise UserError(
                        f"{self.root.location}/{file} has {len(pixels)} images, but there are {len(labels)} labels for it"
                    )
            self._pixels[file] = pixels  # reinserted: the most recently used is last
            while len(self._pixels) > 1 and sum(p.nbytes for p in self._pixels.values()) > KEPT_BYTES:
                del self._pixels[next(iter(self._pixels))]
        return pixels


def as_netpbm(pixels: np.ndarray) -> bytes:
    """An array uint8 (Y, X) or (Y, X, 3) as a PGM or PPM file: a header and the raw pixels."""
    Y, X = pixels.shape[:2]
    magic = "P5" if pixels.ndim == 2 else "P6"
    return f"{magic}\n{X} {Y}\n255\n".encode() + np.ascontiguousarray(pixels).tobytes()
