"""A Ray Data actor pool that works through shards: one shard is one task, retried whole when its worker dies.

What is particular to Ray 2.60 is kept here.
"""

import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ortho_core.errors import RunFailed
from rayjobs.verb.session import innermost

#: Calls of one worker at a time, each with a shard: while the last images of one are searched, the next one's enter.
CALLS = 2


class Attempts:
    """How often each shard was begun, in this run: a shard that always kills its worker must not be tried for ever."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}

    def so_far(self, shard: int) -> int:
        return self.begun.get(shard, 0)

    def begin(self, shard: int) -> int:
        """Count one more; returns how many there were before."""
        before = self.begun.get(shard, 0)
        self.begun[shard] = before + 1
        return before


def on_this_node(kind: type[Any]) -> Any:
    """An actor beside the driver, where the loss of another node does not reach it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(kind).remote()


def pooled(
    worker: type[Any],
    arguments: dict[str, Any],
    tasks: list[dict[str, Any]],
    sizes: tuple[int, int],
    *,
    cpus: float,
    gpus: float,
    labels: dict[str, str] | None = None,
    patience_s: float,
) -> Iterator[dict[str, Any]]:
    """Give each of `tasks` to an actor of class `worker`; yields what it returns, in order of completion.

    The pool has `sizes` (least, most) actors. A worker is called with a batch of one task and returns a batch of one row.
    `patience_s` ends a run in which no task is finished for so long. Raises RunFailed.
    """
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the import has just set it to its own
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = patience_s
    pool = ray.data.ActorPoolStrategy(
        min_size=sizes[0],
        max_size=sizes[1],
        max_tasks_in_flight_per_actor=CALLS,
        max_concurrent_calls_per_actor=CALLS,
        enable_true_multi_threading=True,
    )
    # One block per task: a block is what Ray Data gives to an actor, and gives again when the actor dies.
    blocks = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    done = blocks.map_batches(
        worker,
        batch_size=1,
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus or None,
        label_selector=labels,
        fn_constructor_kwargs=arguments,
    )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        raise RunFailed(f"a worker failed: {innermost(error)}") from error
