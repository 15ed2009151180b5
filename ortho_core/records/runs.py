"""Row numbers that consist of a few runs of consecutive numbers, such as the rows of one size of images in all part files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Runs:
    """Row numbers in order. Run k has the `counts[k]` numbers from `firsts[k]` on; a run may be empty."""

    firsts: Int[np.ndarray, " runs"]
    counts: Int[np.ndarray, " runs"]

    @cached_property
    def starts(self) -> Int[np.ndarray, " ends"]:
        """The position of the first number of each run, then the number of all."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, positions: Sequence[int] | np.ndarray) -> Int[np.ndarray, " positions"]:
        """The row numbers at these positions."""
        at = np.asarray(positions, dtype=np.int64)
        run = np.searchsorted(self.starts, at, side="right") - 1
        rows: np.ndarray = self.firsts[run] + at - self.starts[run]
        return rows

    def spread(self, most: int) -> list[int]:
        """All row numbers, or `most` evenly spaced ones of more."""
        count = min(len(self), most)
        return [int(row) for row in self.rows([i * len(self) // count for i in range(count)])]
