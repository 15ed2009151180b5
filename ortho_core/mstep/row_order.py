"""The rows of each update of the M-step. They depend only on the seed, not on the number of workers.

A set that fits the shuffling window is permuted as a whole. For a larger set, the part files are permuted, and their rows are
concatenated and cut into B equal lanes. An update takes one row of each lane. Within a lane, the order is random among
`window / B` consecutive rows. A worker serves whole lanes, so it reads only its share of the files, each once in sequence.

Axes: B rows of one update (the global batch), over all workers.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from ortho_core.noise.seeded import noise_seed


@dataclass(frozen=True)
class Order:
    """The rows of every update of every epoch, computed on request. An epoch's last incomplete batch is left out."""

    #: Number of the first row of each part file, then the total number of rows.
    starts: Int[np.ndarray, " ends"]
    batch_size: int
    seed: int
    #: Number of rows among which the order is random.
    window: int = 65_536
    #: Distinguishes the random orders of several sets with one seed. The order of the part files is the same for all.
    name: tuple[str | int, ...] = ()
    _kept: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    @property
    def updates(self) -> int:
        """Updates of one epoch."""
        return self.rows // self.batch_size

    def share(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Int[np.ndarray, " share"]:
        """The row numbers that one of `world` workers trains on in one update of an epoch, both counted from 0."""
        each = self.batch_size // world
        lanes = range(rank * each, (rank + 1) * each)
        if self.rows <= self.window:
            return self._whole(epoch)[step * self.batch_size :][lanes.start : lanes.stop]
        width = max(1, self.window // self.batch_size)
        return np.array([self._lane(epoch, lane, step // width, width)[step % width] for lane in lanes])

    def remainder(self, epoch: int) -> Int[np.ndarray, " rest"]:
        """The rows that an epoch leaves out: fewer than a batch."""
        if self.rows <= self.window:
            return self._whole(epoch)[self.updates * self.batch_size :]
        return self._laid_out(epoch, self.updates * self.batch_size, self.rows)

    def _whole(self, epoch: int) -> np.ndarray:
        if (epoch,) not in self._kept:
            self._kept.clear()
            self._kept[(epoch,)] = self._stream("order", *self.name, epoch).permutation(self.rows)
        return self._kept[(epoch,)]

    def _lane(self, epoch: int, lane: int, number: int, width: int) -> np.ndarray:
        """The rows of one window of a lane, in the order of the updates that use them."""
        key = (epoch, lane, number)
        if key not in self._kept:
            for old in [k for k in self._kept if len(k) == 3 and k[1] == lane]:
                del self._kept[old]
            first = lane * self.updates + number * width
            last = min(first + width, (lane + 1) * self.updates)
            self._kept[key] = self._stream("order", *self.name, *key).permutation(self._laid_out(epoch, first, last))
        return self._kept[key]

    def _laid_out(self, epoch: int, first: int, last: int) -> np.ndarray:
        """The rows at positions `first` to `last - 1` of the epoch's permuted and concatenated parts."""
        if (epoch, -1) not in self._kept:
            for old in [k for k in self._kept if k[0] != epoch]:
                del self._kept[old]
            parts = self._stream("parts", epoch).permutation(len(self.starts) - 1)
            self._kept[(epoch, -1)] = parts
            self._kept[(epoch, -2)] = np.cumsum([0, *np.diff(self.starts)[parts]])
        parts, ends = self._kept[(epoch, -1)], self._kept[(epoch, -2)]
        positions = np.arange(first, last)
        part = np.searchsorted(ends, positions, side="right") - 1
        rows: np.ndarray = self.starts[parts[part]] + positions - ends[part]
        return rows

    def _stream(self, *names: str | int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=noise_seed(self.seed, *names)))
