"""The fixed cost of an update that two workers share: `python -m benchmarks.mstep_split --out runs/split.json`.

Seconds of an update of tiny-turbo, without Ray and readers, on shares that are read before: all rows in one process, half of the
rows in one process, and half in each of two processes that average their gradients (DDP on gloo), one thread each, in turns. Half
the rows need more than half the time: the difference is the fixed cost of an update. Two processes need more time than one with
half the rows: the difference is the cost of DDP.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from torch import distributed, nn

from benchmarks.mstep import MODEL, assigned, data_of
from benchmarks.results import write_results
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.data import to_batch
from ortho_core.mstep.update import MStep

#: Warm-up updates, which are not counted.
WARM_UP = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker(
    seconds: "Queue[float]", assignments: Path, rows: int, rank: int, world: int, port: int, updates: int
) -> None:
    """One process: the median seconds of its updates of `rows` rows, shared by `world` processes."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        distributed.init_process_group("gloo", rank=rank, world_size=world)

    def wrap(network: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True) if world > 1 else network

    data = replace(data_of(assignments, rows), preserve_rows=rows // 4)
    generator = load_generator(ModelFolder.open(MODEL))
    step = MStep(generator, MStepConfig(), 10_000, wrap=wrap)
    prompts, shares = PromptCache(generator), [data.share(0, k, rank, world) for k in range(data.order.updates)]
    prompts([prompt for share in shares for prompt in share.prompts])
    spent = []
    for k in range(WARM_UP + updates):
        start = time.perf_counter()
        step.update(to_batch(shares[k % len(shares)], generator, prompts, False))
        spent.append(time.perf_counter() - start)
    if world > 1:
        distributed.destroy_process_group()
    seconds.put(statistics.median(spent[WARM_UP:]))


def update_seconds(assignments: Path, rows: int, world: int, updates: int) -> float:
    """The seconds of the slowest of `world` processes."""
    context = multiprocessing.get_context("spawn")
    seconds: Queue[float] = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=worker, args=(seconds, assignments, rows, rank, world, port, updates), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a process ended without a result")
    return max(seconds.get() for _ in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ways = {"whole": (args.rows, 1), "half": (args.rows // 2, 1), "two": (args.rows, 2)}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        assignments = assigned(Path(folder))
        for _ in range(args.rounds):
            for name, (rows, world) in ways.items():
                spent[name].append(update_seconds(assignments, rows, world, args.updates))
    whole, half, two = (statistics.median(spent[name]) for name in ways)
    found = {
        "rows": args.rows,
        "seconds": {"whole": whole, "half": half, "two": two},
        "fixed": 2 * half - whole,
        "ddp": two - half,
        "most": whole / half,
        "two_over_one": whole / two,
    }
    print(json.dumps(found, indent=1))
    write_results(found, args.out)


if __name__ == "__main__":
    main()
