"""The rows of a pair set to which no noise was assigned, by their numbers: for training on pairs alone.

Axes: Y × X × 3 images.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from ortho_core.class_names import class_number
from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair, Row
from ortho_core.records.assignments import CACHE_BYTES

#: Images that are fetched and decoded side by side.
DECODING_THREADS = 8


class UnassignedRows:
    """Reads rows and decodes their images when they are asked for.

    A row that cannot be used gives its place to the next usable one of its shard: which rows an update has is decided by the set
    alone then, whoever reads it, and no pass over all images comes first. Shards stay in memory up to `cache_bytes`, and stay
    behind when this is sent to another process.
    """

    def __init__(
        self,
        pairs: PairSet,
        image_size: tuple[int, int],
        classes: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`classes` are those that prompts have to name, where there are any. Raises UserError if there are no rows."""
        self.pairs, self.image_size, self.classes, self.cache_bytes = pairs, image_size, classes, cache_bytes
        self.shards = pairs.shards(pairs.rows_per_shard())
        #: Number of the first row of each shard, and of the row after the last.
        self.starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        #: What is wrong with each row that was found to be unusable.
        self.unusable: dict[int, str] = {}
        self._cache: OrderedDict[int, list[Row]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def row_bytes(self) -> int:
        """About how much memory a row takes once it is read, by those of the first shard."""
        return _bytes(self._shard(0)) // self.shards[0].rows

    def prompts(self) -> set[str]:
        """Every prompt that rows have; reads all rows, and no images."""
        rows = (row for shard in self.shards for row in self.pairs.read(shard))
        return {row.prompt for row in rows if isinstance(row, Pair)}

    def read(self, index: Sequence[int]) -> list[tuple[Pair, UInt8[np.ndarray, "Y X 3"]]]:
        """The rows at `index`, or those in their places, and their images.

        Raises UserError if a shard has no usable row, or its file has changed.
        """
        shards = [int(np.searchsorted(self.starts, row, side="right")) - 1 for row in index]
        rows = [self._shard(shard) for shard in shards]
        offsets = [int(row - self.starts[shard]) for row, shard in zip(index, shards, strict=True)]
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            return list(pool.map(self._first_usable, rows, offsets))

    def _shard(self, number: int) -> list[Row]:
        if number not in self._cache:
            self._cache[number] = list(self.pairs.read(self.shards[number]))
            while sum(map(_bytes, self._cache.values())) > self.cache_bytes and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    def _first_usable(self, rows: list[Row], offset: int) -> tuple[Pair, np.ndarray]:
        """The first usable row from `offset` on, and round again from the first."""
        for row in rows[offset:] + rows[:offset]:
            number = row[0] if isinstance(row, tuple) else row.row
            if number in self.unusable:
                continue
            try:
                return self._decoded(row)
            except BadRow as bad:
                message = str(bad)
                self.unusable[number] = message if message.startswith("row ") else f"row {number}: {message}"
        first = rows[offset]
        said = self.unusable[first[0] if isinstance(first, tuple) else first.row]
        raise UserError(f"{self.pairs.location}: none of {len(rows)} rows in a row can be used, such as {said}")

    def _decoded(self, row: Row) -> tuple[Pair, np.ndarray]:
        """Raises BadRow."""
        if isinstance(row, tuple):
            raise row[1]
        if self.classes:
            class_number(row.prompt, self.classes)
        (image,) = self.pairs.images([row], self.image_size)
        if isinstance(image, BadRow):
            raise image
        return replace(row, content=None), image


def _bytes(rows: Sequence[Row]) -> int:
    return sum(512 + len(row.content or b"") for row in rows if isinstance(row, Pair))
