"""The interfaces between the pool and the verbs that use it.

A verb gives the pool a `PoolJob`, with the number of workers and the limits of the run, and a `Search`, which processes a shard.
The `Search` is sent to every worker before anything is loaded; there it loads a `Searcher`.
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
    """What the pool needs from a job; `PoolResources` has all of it except `out`."""

    @property
    def out(self) -> str | Path:
        """The output folder, for messages."""
        ...

    @property
    def pool_size(self) -> tuple[int, int]:
        """The least and the most workers; (0, 0): the command's own process works."""
        ...

    @property
    def cpus_per_worker(self) -> float: ...

    @property
    def cpus_per_decoder(self) -> float | None:
        """None: 1 if the cluster has one to spare, else 0."""
        ...

    @property
    def node_labels(self) -> dict[str, str] | None: ...

    @property
    def max_failure_rate(self) -> float:
        """The run ends if a larger share of its rows is quarantined."""
        ...

    def gpus(self) -> float:
        """GPUs of one worker on the connected cluster."""
        ...

    def worker_device(self) -> str:
        """The device of a worker that Ray starts. Raises UserError for a device that does not exist."""
        ...

    def own_device(self) -> str:
        """The device of a command that starts no workers. Raises UserError for a device that does not exist."""
        ...

    def fitting(self, wanted: int) -> int:
        """How many of `wanted` workers the cluster has room for. Raises UserError if it cannot hold one."""
        ...

    def spare_cpu(self, workers: int) -> float:
        """CPUs that the cluster has left for the decoder of each of `workers` workers: 1 or 0."""
        ...


class Attempts(Protocol):
    """Counts how often each shard was begun: a shard that always crashes its worker must not be tried without end."""

    def so_far(self, shard: int) -> int: ...

    def begin(self, shard: int) -> int:
        """Count one attempt more; returns the number before it."""
        ...


#: Returns the function that decodes the images of a pair set.
Decoder = Callable[[PairSet], Decode]


@dataclass(frozen=True)
class Usage:
    """How well a searcher's slots were used since it was loaded."""

    #: Images per batch.
    slots: int
    #: Computed evaluations, including those of empty slots.
    computed: int
    #: Seconds in which no decoded row was ready.
    waited: float
    #: Number of processes that crashed while decoding.
    killed: int


class Metrics(Protocol):
    """Receives the figures of a worker."""

    def shard(self, result: ShardResult, usage: Usage) -> None:
        """A shard was searched."""
        ...

    def published(self, seconds: float) -> None:
        """A part file was written in `seconds`."""
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
        """Whether several shards are searched at once, each called from its own thread."""
        ...

    @property
    def attempts(self) -> Attempts: ...

    @property
    def metrics(self) -> Metrics | None: ...

    def decoder(self, pairs: PairSet) -> Decode:
        """The function that decodes the images of a pair set."""
        ...


class Searcher(Protocol):
    """A search with its models loaded."""

    def search(self, shard: Shard, only: frozenset[int] | None) -> ShardResult:
        """The records and failures of a shard; `only` selects rows (None: all). Thread-safe if the place is concurrent."""
        ...

    def usage(self) -> Usage: ...


class Search(Protocol):
    """How a shard is processed. It is sent to every worker, so it holds no loaded model."""

    @property
    def pairs(self) -> PairSet:
        """The pair set with the rows."""
        ...

    @property
    def passes(self) -> int:
        """The most passes of all slots that a shard needs. They decide how long the driver waits for a finished shard."""
        ...

    def load(self, place: WorkerPlace, notes: list[str]) -> Searcher:
        """Load the models once for all shards. Lines to print for the user are appended to `notes`.

        Raises UserError.
        """
        ...
