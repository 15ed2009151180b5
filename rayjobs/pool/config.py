"""The options that every verb with a pool of workers has."""

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ortho_core.marks import conduct, decides, resolved
from rayjobs.verb.precision import Precision
from rayjobs.verb.resources import WorkerResources


def span(given: object) -> object:
    """`3`, `2:64`, or `0` for none, in one spelling."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        return given
    least, _, most = str(given).partition(":")
    if str(given) == "0":
        return "0"
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise ValueError("a number of workers, LEAST:MOST, or 0 for none: in the command's own process")
    return str(given)


class PoolResources(WorkerResources):
    """A pool of workers, and what it works through."""

    rows_per_shard: int = resolved(
        0, ge=0, description="rows of one task and part file, what a lost worker repeats (0: 64 to 1024, by the set)"
    )
    workers: Annotated[str, BeforeValidator(span)] = conduct(
        "1",
        description="actors in the pool, N or LEAST:MOST, fewer if the cluster has no room yet (0: work in this process, for a "
        "debugger)",
    )
    cpus_per_decoder: float | None = conduct(
        None,
        ge=0,
        description="CPUs of the process that decodes images for a worker (none: 1 where the cluster has so many to spare)",
    )
    gpu_memory: float | None = conduct(
        None,
        gt=0,
        description="plan for a GPU of so many GiB (none: as many as it has); with --dry-run for one that need not be there",
    )
    max_failure_rate: float = conduct(
        0.5, ge=0, le=1, description="end the run once more than this share of the rows so far is quarantined"
    )

    verify: bool = conduct(
        False, description="compare what was made before with its checksums, and not sizes and times alone"
    )

    @property
    def pool_size(self) -> tuple[int, int]:
        """The least and the most workers; none: the command's own process works."""
        least, _, most = self.workers.partition(":")
        return int(least), int(most or least)

    @property
    def most_workers(self) -> int:
        return self.pool_size[1]

    def session(self) -> AbstractContextManager[None]:
        """Ray, where there is a pool."""
        from rayjobs.verb.session import ray_session

        return ray_session() if self.pool_size[1] else nullcontext()


class PoolSettings(PoolResources, Precision):
    """How a pool of workers searches through shards of rows."""

    seed: int = decides(0, ge=0, description="with a row's sample id, decides its base noise")
    slots: int = conduct(
        0, ge=0, description="images side by side on one worker (0: what fits the GPU, 16 without one)"
    )
    store: Literal["parameters", "noise"] = decides(
        "parameters", description="keep the noise as seed and rotation, or also itself in half precision"
    )
    compile: bool = conduct(False, description="torch.compile the network, once at the start of each worker")
    gradient_checkpointing: bool = conduct(
        False, description="compute activations twice, to fit more slots (left out: where not one fits otherwise)"
    )
