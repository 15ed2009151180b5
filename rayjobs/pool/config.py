"""The options of all verbs with a pool of workers."""

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ortho_core.marks import conduct, decides, resolved
from rayjobs.verb.precision import Precision
from rayjobs.verb.resources import WorkerResources


def span(value: object) -> object:
    """A number of workers as text: `3`, `2:64`, or `0` for none. Raises ValueError for other text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return value
    least, _, most = str(value).partition(":")
    if str(value) == "0":
        return "0"
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise ValueError("a number of workers, LEAST:MOST, or 0 to work in the command's own process")
    return str(value)


class PoolResources(WorkerResources):
    """The pool of workers and its tasks."""

    rows_per_shard: int = resolved(
        0,
        ge=0,
        description="rows per task and part file; a lost worker's rows are repeated (0: 64 to 1024, by the set's size)",
    )
    workers: Annotated[str, BeforeValidator(span)] = conduct(
        "1",
        description="workers, N or LEAST:MOST; starts with fewer if the cluster has no room yet (0: work in this process, e.g. "
        "for a debugger)",
    )
    cpus_per_decoder: float | None = conduct(
        None,
        ge=0,
        description="CPUs of the process that decodes images for a worker (none: 1 if the cluster has one to spare, else 0)",
    )
    gpu_memory: float | None = conduct(
        None,
        gt=0,
        description="plan for a GPU with this memory in GiB (none: the GPU's own memory); with --dry-run no GPU is needed",
    )
    max_failure_rate: float = conduct(
        0.5, ge=0, le=1, description="end the run when more than this share of the rows so far is quarantined"
    )

    verify: bool = conduct(
        False, description="compare existing output files with their checksums, not only with their sizes and times"
    )

    @property
    def pool_size(self) -> tuple[int, int]:
        """The least and the most workers; (0, 0): the command's own process works."""
        least, _, most = self.workers.partition(":")
        return int(least), int(most or least)

    @property
    def most_workers(self) -> int:
        return self.pool_size[1]

    def session(self) -> AbstractContextManager[None]:
        """A Ray session if there is a pool; else nothing."""
        from rayjobs.verb.session import ray_session

        return ray_session() if self.pool_size[1] else nullcontext()


class PoolSettings(PoolResources, Precision):
    """How the workers search the noise of their rows."""

    seed: int = decides(0, ge=0, description="decides, with a row's sample id, its base noise")
    slots: int = conduct(0, ge=0, description="images per batch on one worker (0: as many as fit the GPU, 16 on a CPU)")
    store: Literal["parameters", "noise"] = decides(
        "parameters",
        description="parameters: store the noise as seed and rotation; noise: also store it in half precision",
    )
    compile: bool = conduct(False, description="torch.compile the network, once at the start of each worker")
    gradient_checkpointing: bool = conduct(
        False, description="compute activations twice to save memory (left out: used only if nothing fits without it)"
    )
