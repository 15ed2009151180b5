"""A Ray Data actor pool that processes shards: one shard is one task, which is repeated in full when its worker dies.

Code that depends on Ray 2.60 is here.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ortho_core.errors import RunFailed
from ortho_core.pairs.decoding import Decode
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.plan import ShardedPlan
from rayjobs.pool.decoder import RayDecoder
from rayjobs.pool.ledger import Ledger
from rayjobs.pool.messages import Work
from rayjobs.pool.prometheus import WorkerMetrics
from rayjobs.pool.protocol import Search
from rayjobs.pool.worker import Counted, PoolWorker
from rayjobs.verb.faults import explained

#: Shards that one worker processes at once: the next shard's images enter free slots while the last of this one are searched.
CALLS = 2


class CountedBesideTheDriver:
    """How often each shard was begun by any worker. The counting actor is on the driver's node, so no lost node takes it."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self.counter = ray.remote(**options)(Counted).remote()

    def so_far(self, shard: int) -> int:
        return int(ray.get(self.counter.so_far.remote(shard)))

    def begin(self, shard: int) -> int:
        return int(ray.get(self.counter.begin.remote(shard)))


class RayActor:
    """The place of a worker that is an actor: it processes several shards at once and decodes images in another process."""

    concurrent = True

    def __init__(self, device: str, threads: int, decoder_cpus: float, attempts: CountedBesideTheDriver) -> None:
        self.device, self.threads, self.attempts = device, threads, attempts
        self.decoder_cpus, self.metrics = decoder_cpus, WorkerMetrics()

    def decoder(self, pairs: PairSet) -> Decode:
        return RayDecoder(pairs, self.decoder_cpus)


class PoolActor:
    """A worker in the form that Ray Data calls: with a batch of one task, from several threads."""

    def __init__(self, search: Search, ledger: Ledger[ShardedPlan], **place: Any) -> None:
        """`place` are the arguments of `RayActor`."""
        self.worker = PoolWorker(search, ledger, RayActor(**place))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        work = Work.of_row({name: value for name, (value,) in batch.items()})
        return {name: [value] for name, value in self.worker.work(work).to_row().items()}


def pooled(
    worker: type,
    arguments: Mapping[str, object],
    tasks: Sequence[Mapping[str, str]],
    sizes: tuple[int, int],
    *,
    cpus: float,
    gpus: float,
    labels: dict[str, str] | None = None,
    patience_s: float,
    job: object = None,
) -> Iterator[dict[str, str]]:
    """Send each of `tasks` to an actor of class `worker`; yields the results in order of completion.

    The pool has `sizes` (least, most) actors. A worker is called with a batch of one task and returns a batch of one row.
    The run ends if no task is finished for `patience_s` seconds. Raises RunFailed; if memory ran out, its message names the
    options of `job` that need less.
    """
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the import of ray.data has just changed the level
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
    # One block per task: Ray Data sends a block to an actor, and sends it again when the actor dies.
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
        raise RunFailed(f"a worker failed: {explained(error, job)}") from error
