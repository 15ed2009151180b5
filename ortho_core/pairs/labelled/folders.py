"""Image folders: one folder per class, whose name is the prompt of every image in it."""

import hashlib
from collections.abc import Iterator
from typing import Any

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.labelled.arrays import refuse_fields
from ortho_core.pairs.rows import Cut, PairFields, Row, Shard, make_pair
from ortho_core.storage.store import Store

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")


def class_folders_of(root: Store) -> list[str]:
    """The folders directly in `root` that have images directly in them, in order; none where there is only one.

    One folder of images is what is left of a set whose prompts are missing.
    """
    folders = sorted(set(root.entries()) - set(root.names()))
    found = [folder for folder in folders if images_in(root, folder)]
    return found if len(found) > 1 else []


def images_in(root: Store, folder: str) -> list[str]:
    return [name for name in root.child(folder).names() if name.lower().endswith(SUFFIXES)]


class ClassFolders:
    """Folders of images. Rows go folder by folder; one folder's names are in memory at a time."""

    def __init__(self, root: Store, folders: list[str], fields: PairFields) -> None:
        refuse_fields(root, fields)
        self.root, self.folders = root, folders
        self._counted: tuple[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "folders": [], "_counted": None}

    def _count(self) -> tuple[str, int]:
        """SHA-256 of the names and the number of images."""
        if self._counted is None:
            digest, rows = hashlib.sha256(), 0
            for folder in self.folders:
                names = images_in(self.root, folder)
                rows += len(names)
                digest.update("\0".join([folder, *names, ""]).encode())
            self._counted = digest.hexdigest(), rows
        return self._counted

    def signature(self) -> str:
        return self._count()[0]

    def rows(self) -> int:
        return self._count()[1]

    def cuts(self, rows: int) -> Iterator[Cut]:
        for folder in self.folders:
            total = len(images_in(self.root, folder))
            for at in range(0, total, rows):
                yield Cut(folder, min(rows, total - at), at)

    def read(self, shard: Shard) -> Iterator[Row]:
        names = images_in(self.root, shard.file)[shard.offset : shard.offset + shard.rows]
        for row, name in enumerate(names, shard.first):
            try:
                yield make_pair(row, {"class": shard.file}, ("class", "", None), f"{shard.file}/{name}")
            except BadRow as bad:
                yield row, bad

    def ids(self, shard: Shard) -> Iterator[Any]:
        raise UserError(f"{self.root.location} has no id field")

    def fetch(self, image: str) -> None:
        return None
