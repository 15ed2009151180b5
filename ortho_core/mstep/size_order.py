"""The rows of each update if the images have several sizes: nearly every update has rows of one size.

Each size has an order of its own, whose rows fill whole batches. Its remainder, fewer rows than a batch, is not lost: the
remainders of all sizes, one after another, are cut into batches too, whose rows are computed size by size. So an epoch leaves
out fewer rows than one batch, as with one size. The sizes of the batches follow one another in random order. Everything depends
only on the seed.

Axes: B rows of one update (the global batch), over all workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from ortho_core.mstep.row_order import Order
from ortho_core.noise.seeded import noise_seed
from ortho_core.records.runs import Runs


@dataclass(frozen=True)
class Group:
    """Rows of one size in a worker's share of an update."""

    rows: Int[np.ndarray, " rows"]
    #: The weight of each row in the sum over all groups of the share; None: it is the only group, and its mean counts.
    weights: Float[np.ndarray, " rows"] | None = None
    #: The place of each row among the B rows of the update, -1 for a row that repeats another; None: the only group.
    places: Int[np.ndarray, " rows"] | None = None


@dataclass(frozen=True)
class SizeOrder:
    """The rows of every update of every epoch, of several sizes. As in `Order`, an epoch leaves out fewer rows than a batch."""

    #: The rows of each size.
    runs: Sequence[Runs]
    batch_size: int
    seed: int
    #: Number of rows of all sizes among which the order is random.
    window: int = 65_536
    _kept: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    _orders: list[Order] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        share = [max(1, self.window * len(runs) // self.rows) for runs in self.runs]
        for number, (runs, window) in enumerate(zip(self.runs, share, strict=True)):
            self._orders.append(Order(runs.starts, self.batch_size, self.seed, window, ("size", number)))

    @property
    def rows(self) -> int:
        return sum(len(runs) for runs in self.runs)

    @property
    def updates(self) -> int:
        """Updates of one epoch."""
        return self.rows // self.batch_size

    def groups(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> list[Group]:
        """The rows that one of `world` workers trains on in one update, size by size.

        All workers have the same sizes in the same order, and equally many rows of each: where the rows of a size do not divide
        among them, some repeat a row with weight 0.
        """
        sizes, turns = self._sequence(epoch)
        size, turn = int(sizes[step]), int(turns[step])
        if size < len(self.runs):
            return [Group(self.runs[size].rows(self._orders[size].share(epoch, turn, rank, world)))]
        B, groups = self.batch_size, []
        mixed = self._remainders(epoch)[turn * B : (turn + 1) * B]
        for of_size in dict.fromkeys(mixed[:, 0].tolist()):
            places = np.flatnonzero(mixed[:, 0] == of_size)
            each = -(-len(places) // world)
            mine = places[rank * each : (rank + 1) * each]
            missing = each - len(mine)
            weights = np.full(each, world / B, np.float32)
            weights[len(mine) :] = 0
            rows = mixed[np.concatenate([mine, np.repeat(places[:1], missing)]), 1]
            groups.append(Group(rows, weights, np.concatenate([mine, np.full(missing, -1)])))
        return groups

    def _sequence(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each update its size, or the number of sizes for one of the remainders; and how many of its kind came before."""
        if self._kept.get("sequence", (-1,))[0] != epoch:
            counts = [order.updates for order in self._orders]
            kinds = np.repeat(np.arange(len(counts) + 1), [*counts, self.updates - sum(counts)])
            sizes = self._stream("sizes", epoch).permutation(kinds)
            turns = np.zeros_like(sizes)
            for kind in range(len(counts) + 1):
                of_kind = sizes == kind
                turns[of_kind] = np.arange(of_kind.sum())
            self._kept["sequence"] = epoch, np.stack([sizes, turns])
        sizes, turns = self._kept["sequence"][1]
        return sizes, turns

    def _remainders(self, epoch: int) -> np.ndarray:
        """(size, row) of the rows that fill no whole batch of their size, size by size, the sizes in random order."""
        if self._kept.get("remainders", (-1,))[0] != epoch:
            found = []
            for size in self._stream("remainders", epoch).permutation(len(self.runs)).tolist():
                rows = self.runs[size].rows(self._orders[size].remainder(epoch))
                found.append(np.stack([np.full(len(rows), size), rows], 1))
            self._kept["remainders"] = epoch, np.concatenate(found)
        return self._kept["remainders"][1]

    def _stream(self, *names: str | int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=noise_seed(self.seed, *names)))
