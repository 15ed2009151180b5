"""The rows of a pair set without assigned noise, by their numbers: for training on pairs without an E-step.

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
from ortho_core.framing.framing import Framing
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair, Row
from ortho_core.records.assignments import CACHE_BYTES

#: Threads that fetch and decode images.
DECODING_THREADS = 8


class UnassignedRows:
    """Reads rows and decodes their images on request.

    A row that cannot be used is replaced by the next usable row of its shard. So the rows of an update depend only on the set,
    not on the process that reads it, and no pass over all images is needed first. Shards are cached up to `cache_bytes`; the
    cache is not pickled.
    """

    def __init__(
        self,
        pairs: PairSet,
        image_size: tuple[int, int],
        classes: Sequence[str] = (),
        cache_bytes: int = CACHE_BYTES,
        framing: Framing | None = None,
    ) -> None:
        """If there are `classes`, every prompt must name one. `framing`: the sizes of the images, if they have several.

        Raises UserError if there are no rows.
        """
        self.framing = framing or Framing.at(image_size)
        self.pairs, self.classes, self.cache_bytes = pairs, classes, cache_bytes
        self.shards = pairs.shards(pairs.rows_per_shard())
        #: Number of the first row of each shard, then the total number of rows.
        self.starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        #: The message of each row that turned out to be unusable.
        self.unusable: dict[int, str] = {}
        self._cache: OrderedDict[int, list[Row]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def row_bytes(self) -> int:
        """Estimated bytes of a row in memory, as the mean over the first shard."""
        return _bytes(self._shard(0)) // self.shards[0].rows

    def prompts(self) -> set[str]:
        """All different prompts. Reads all rows, but no images."""
        rows = (row for shard in self.shards for row in self.pairs.read(shard))
        return {row.prompt for row in rows if isinstance(row, Pair)}

    def read(self, index: Sequence[int]) -> list[tuple[Pair, UInt8[np.ndarray, "Y X 3"]]]:
        """The rows at `index`, or their replacements, with their frames and images.

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
        """The first usable row from `offset` on, continuing from the first row after the last."""
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
        example = self.unusable[first[0] if isinstance(first, tuple) else first.row]
        raise UserError(
            f"{self.pairs.location}: none of a shard's {len(rows)} rows can be used; one of them: {example}"
        )

    def _decoded(self, row: Row) -> tuple[Pair, np.ndarray]:
        """The row without its encoded image, and the decoded image. Raises BadRow if the row cannot be used."""
        if isinstance(row, tuple):
            raise row[1]
        if self.classes:
            class_number(row.prompt, self.classes)
        (outcome,) = self.pairs.framed([row], self.framing)
        if isinstance(outcome, BadRow):
            raise outcome
        image, frame = outcome
        return replace(row, content=None, frame=frame), image


def _bytes(rows: Sequence[Row]) -> int:
    return sum(512 + len(row.content or b"") for row in rows if isinstance(row, Pair))
