"""What the pool and the verbs that use it know of each other.

A verb gives the pool a `PoolJob`, which says how many workers there are and when to give up, and a `Search`, which says what
becomes of a shard. A search is a recipe that is sent to every worker; what it loads there is a `Searcher`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ortho_core.pairs.decoding import Decode
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Shard
from ortho_core.records.parts import ShardResult


class PoolJob(Protocol):
    """What the pool needs of a job; `PoolResources` has all of it but `out`."""

    @property
    def out(self) -> str | Path:
        """Where the result goes, to name in messages."""
        ...

    @property
    def pool_size(self) -> tuple[int, int]:
        """The least and the most workers; none: the command's own process works."""
        ...

    @property
    def cpus_per_worker(self) -> float: ...

    @property
    def cpus_per_decoder(self) -> float | None:
        """None: one, where there is one to spare."""
        ...

    @property
    def node_labels(self) -> dict[str, str] | None: ...

    @property
    def max_failure_rate(self) -> float:
        """The share of quarantined rows above which a run ends."""
        ...

    def gpus(self) -> float:
        """GPUs of one worker on the connected cluster."""
        ...

    def worker_device(self) -> str:
        """Where a worker that Ray starts computes. Raises UserError for a device that Ray does not give."""
        ...

    def own_device(self) -> str:
        """Where a command computes that starts no workers. Raises UserError for a device that is not there."""
        ...

    def fitting(self, wanted: int) -> int:
        """How many of `wanted` workers the cluster has room for. Raises UserError if it cannot hold one."""
        ...

    def spare_cpu(self, workers: int) -> float:
        """CPUs that the cluster has to spare beside each of so many workers."""
        ...


class Attempts(Protocol):
    """How often each shard was begun: a shard that always kills its worker must not be tried for ever."""

    def so_far(self, shard: int) -> int: ...

    def begin(self, shard: int) -> int:
        """Count one more; returns how many there were before."""
        ...


#: Gives what decodes the images of a pair set.
Decoder = Callable[[PairSet], Decode]


@dataclass(frozen=True)
class Usage:
    """How well a searcher's slots were used since it was loaded."""

    #: Images side by side.
    slots: int
    #: Evaluations computed, those of empty slots included.
    computed: int
    #: Seconds in which no decoded row was ready.
    waited: float
    #: Processes that died while decoding.
    killed: int


class Metrics(Protocol):
    """Who is told how a worker does."""

    def shard(self, result: ShardResult, usage: Usage) -> None:
        """A shard was searched."""
        ...

    def published(self, seconds: float) -> None:
        """A part file was written, in so many seconds."""
        ...


class WorkerPlace(Protocol):
    """Where a worker runs: in the command's own process, or as an actor of Ray."""

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int:
        """Threads of torch."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether shards are searched side by side, each asked for from a thread of its own."""
        ...

    @property
    def attempts(self) -> Attempts: ...

    @property
    def metrics(self) -> Metrics | None: ...

    def decoder(self, pairs: PairSet) -> Decode:
        """What decodes the images of a pair set."""
        ...


class Searcher(Protocol):
    """A search with everything loaded."""

    def search(self, shard: Shard, only: frozenset[int] | None) -> ShardResult:
        """The records and failures of a shard, of the rows `only` if not of all. Thread-safe where the place is concurrent."""
        ...

    def usage(self) -> Usage: ...


class Search(Protocol):
    """What becomes of a shard; sent to every worker, so that nothing in it is loaded yet."""

    @property
    def pairs(self) -> PairSet:
        """The rows."""
        ...

    @property
    def passes(self) -> int:
        """Passes of all slots that a shard takes at most: what bounds the time that a worker may be silent."""
        ...

    def load(self, place: WorkerPlace, notes: list[str]) -> Searcher:
        """Load what is held from the first shard to the last. What a person should know is appended to `notes`.

        Raises UserError.
        """
        ...
