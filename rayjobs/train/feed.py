"""Ray Data as the feed of a training worker: a process beside it reads, decodes and rebuilds noise, updates ahead.

Each worker streams a data set of its own, one row per update, in the order of the updates: which rows an update sees and
which noise is decided by the seed, so neither the number of workers nor a restart changes it.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import ray.data

from ortho_core.errors import UserError
from ortho_core.mstep.data import MatchedData, Share

#: Blocks of a stream: a block is what Ray Data gives to the reader, and gives again if the reader dies.
MOST_BLOCKS = 512
#: Updates that are ready before they are asked for.
UPDATES_READ_AHEAD = 4
#: A block of shares is passed on once it has this many bytes.
BLOCK_BYTES = 16 << 20


class ShareReader:
    """The process. Called with the numbers of updates, it returns this worker's shares of them."""

    def __init__(self, data: MatchedData, rank: int, world: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.data, self.rank, self.world = data, rank, world

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (update,) = batch["update"]
        epoch, step = divmod(int(update), self.data.order.updates)
        return self.data.share(epoch, step, self.rank, self.world).as_row()


#: What Ray adds to the message of an error, in a line of its own.
RAYS_ADVICE = "Failed to apply UDF transform after"


def ahead(shares: Iterator[Share]) -> Iterator[Share]:
    """The same shares, each fetched while the one before is trained on; the first right away."""
    pool = ThreadPoolExecutor(1)
    first = pool.submit(next, shares, None)

    def run() -> Iterator[Share]:
        coming = first
        with pool:
            while (share := coming.result()) is not None:
                coming = pool.submit(next, shares, None)
                yield share

    return run()


def read_here(data: MatchedData, start: int, stop: int) -> Iterator[Share]:
    """The shares of a worker that is alone, read in its own process."""
    for update in range(start, stop):
        epoch, step = divmod(update, data.order.updates)
        yield data.share(epoch, step)


def feed(
    data: MatchedData, start: int, stop: int, *, rank: int, world: int, readers: int, patience_s: float = 3600.0
) -> Iterator[Share]:
    """This worker's shares of the updates from `start` to `stop`, counted over all epochs, from `readers` processes.

    The processes ask for no CPUs of Ray's: they belong to the worker, and a cluster whose CPUs are all taken by workers
    must not wait for them. Raises UserError for what is wrong with the data.
    """
    context = ray.data.DataContext.get_current()
    for name, level in (("ray", logging.ERROR), ("ray.data", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = patience_s
    context.raise_original_map_exception = True  # else what the reader raised arrives as text alone
    updates = [{"update": u} for u in range(start, stop)]
    shares = ray.data.from_items(updates, override_num_blocks=min(len(updates), MOST_BLOCKS)).map_batches(
        ShareReader,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=readers),
        num_cpus=0,
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        fn_constructor_kwargs={"data": data, "rank": rank, "world": world},
    )
    try:
        for row in shares.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=UPDATES_READ_AHEAD):
            yield Share.of_row(row)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            said, _, _ = str(error.cause).partition(RAYS_ADVICE)
            raise UserError(said.removesuffix(r"\n")) from error  # what begins a line is escaped in a message
        raise
