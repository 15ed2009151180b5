"""Feeds a training worker with Ray Data: a process beside it reads, decodes and rebuilds noise some updates ahead.

Each worker streams its own data set, one row per update, in the order of the updates. The seed decides the rows and the noise of
an update, so neither the number of workers nor a restart changes them.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import ray.data

from ortho_core.errors import UserError
from ortho_core.mstep.data import MatchedData
from ortho_core.mstep.share import Share

#: Most blocks of a stream. Ray Data passes blocks to the reader, and passes one again if the reader dies.
MOST_BLOCKS = 512
#: Updates that are read ahead.
UPDATES_READ_AHEAD = 4
#: A block of shares is passed on when it has this many bytes.
BLOCK_BYTES = 16 << 20


class ShareReader:
    """Runs in the reading process: called with the number of an update, it returns this worker's share of it."""

    def __init__(self, data: MatchedData, rank: int, world: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.data, self.rank, self.world = data, rank, world

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (update,) = batch["update"]
        epoch, step = divmod(int(update), self.data.order.updates)
        share = self.data.share(epoch, step, self.rank, self.world)
        return share.as_row() if self.data.is_one_size else share.packed()


#: The text that Ray adds to an error message, in a separate line.
RAYS_ADVICE = "Failed to apply UDF transform after"


def ahead(shares: Iterator[Share]) -> Iterator[Share]:
    """The same shares, each fetched while the one before is trained on. The first is fetched at once."""
    pool = ThreadPoolExecutor(1)
    first = pool.submit(next, shares, None)

    def run() -> Iterator[Share]:
        following = first
        with pool:
            while (share := following.result()) is not None:
                following = pool.submit(next, shares, None)
                yield share

    return run()


def read_here(data: MatchedData, start: int, stop: int) -> Iterator[Share]:
    """The shares of the only worker, read in its own process."""
    for update in range(start, stop):
        epoch, step = divmod(update, data.order.updates)
        yield data.share(epoch, step)


def feed(
    data: MatchedData, start: int, stop: int, *, rank: int, world: int, readers: int, patience_s: float = 3600.0
) -> Iterator[Share]:
    """This worker's shares of the updates from `start` to `stop`, counted over all epochs, from `readers` processes.

    The processes request no CPUs from Ray: otherwise they would wait for ever on a cluster whose CPUs are all taken by
    workers. Raises UserError for faults of the data.
    """
    context = ray.data.DataContext.get_current()
    for name, level in (("ray", logging.ERROR), ("ray.data", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = patience_s
    context.raise_original_map_exception = True  # otherwise the reader's exception arrives only as text
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
            message, _, _ = str(error.cause).partition(RAYS_ADVICE)
            raise UserError(message.removesuffix(r"\n")) from error  # messages have line breaks escaped
        raise
