"""How the E-step job scales: `python -m benchmarks.assign_scale --out runs/scale.json`.

Each figure compares two runs, made one after the other: the job with its engine without Ray, two workers with one, 64 workers
with one, a million rows with ten thousand. `--only` selects some of them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.results import write_results
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engines import Engines
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.rows import PairRows
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.framing.framing import Framing
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import Condition
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.plan import ReconstructionPlan
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import make_plan
from rayjobs.assign.worker import Reconstructing, search_of
from rayjobs.pool.actors import pooled
from rayjobs.pool.driver import receipts
from rayjobs.pool.engine_search import EngineSearch
from rayjobs.pool.ledger import Ledger, Task
from rayjobs.pool.messages import Work
from rayjobs.verb.plan import claim
from rayjobs.verb.session import ray_session

MODEL = Path("models/tiny-turbo")


def repeated_pairs(folder: Path, rows: int) -> Path:
    """A pair set of `rows` rows over the images of examples/digits."""
    folder.mkdir(parents=True)
    shutil.copytree("examples/digits/images", folder / "images")
    lines = [json.loads(line) for line in Path("examples/digits/pairs.jsonl").read_text().splitlines()]
    with (folder / "pairs.jsonl").open("w") as stream:
        for i in range(rows):
            stream.write(json.dumps(lines[i % len(lines)]) + "\n")
    return folder


def todo_of(job: AssignJob) -> tuple[Ledger[ReconstructionPlan], PairSet, list[Work]]:
    plan, pairs, shards = make_plan(job, ModelFolder.open(job.model))
    return Ledger(claim(job.out, plan), plan), pairs, [Work(Task(shard.index), shard) for shard in shards]


def steady(done: list[tuple[float, int]]) -> float:
    """Rows per second between the first and the last receipt, (time, rows) each, without the start-up time."""
    return sum(rows for _, rows in done[1:]) / (done[-1][0] - done[0][0])


def job_rate(job: AssignJob) -> dict[str, float]:
    """Rows per second of the real job, steady and from start to end."""
    ledger, pairs, todo = todo_of(job)
    began, done = time.perf_counter(), []
    for receipt in receipts(job, ledger, todo, search_of(job, ModelFolder.open(job.model), ledger.plan, pairs)):
        assert not receipt.error, receipt.error
        done.append((time.perf_counter(), receipt.assigned))
    rows = sum(count for _, count in done)
    return {"rows": rows, "steady": steady(done), "with_start": rows / (done[-1][0] - began)}


def engine_rate(job: AssignJob, threads: int) -> dict[str, float]:
    """The same engine in this process, over all rows as one stream; nothing is published."""
    torch.set_num_threads(threads)
    _, pairs, todo = todo_of(job)
    generator = load_generator(ModelFolder.open(job.model))
    config = AssignConfig(**{name: getattr(job, name) for name in AssignConfig.model_fields})
    objective = Reconstruction(generator, config)
    rows = PairRows(objective, PromptCache(generator), pairs, job.store_latents)
    engines = Engines(generator, config, job.slots, objective)
    assigner = ShardAssigner(engines, rows, RecordConfig(job.seed, job.store, "", ""))
    futures = [assigner.submit(work.shard) for work in todo]
    done: list[tuple[float, int]] = []
    for future in futures:
        future.add_done_callback(lambda f: done.append((time.perf_counter(), len(f.result().rows))))
    threading.Thread(target=assigner.serve, daemon=True).start()
    for future in futures:
        future.result()
    return {"rows": sum(count for _, count in done), "steady": steady(done)}


def against_the_engine(scratch: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Compares the job's workers with the engine in one process, and in two independent processes."""
    pairs = repeated_pairs(scratch / "pairs", rows)
    common = {"pairs": str(pairs), "model": str(MODEL), "slots": 32, "cpus_per_decoder": 0}
    forms = {
        "one worker, two threads": {"workers": 1, "cpus_per_worker": 2},
        "one worker, one thread": {"workers": 1, "cpus_per_worker": 1},
        "two workers, one thread each": {"workers": 2, "cpus_per_worker": 1},
    }
    steady_rates: dict[str, list[float]] = {}
    for number in range(rounds):

        def record(name: str, rate: float) -> None:
            steady_rates.setdefault(name, []).append(rate)
            print(f"{name}: {rate:.2f} rows/s", flush=True)

        def engines(threads: int, processes: int, number: int = number) -> float:
            folders = [scratch / f"engine-{number}-{threads}-{k}" for k in range(processes)]
            codes = [f"engine-{threads}:{json.dumps({**common, 'out': str(folder)})}" for folder in folders]
            with ThreadPoolExecutor(processes) as pool:
                return sum(one["steady"] for one in pool.map(lambda code: in_own_process("--child", code), codes))

        record("engine, two threads", engines(2, 1))
        record("engine, one thread", engines(1, 1))
        record("two engines, one thread each", engines(1, 2))
        for name, options in forms.items():
            record(name, job_rate(AssignJob(**common, **options, out=scratch / f"{number} {name}"))["steady"])
    best = {name: max(rates) for name, rates in steady_rates.items()}
    return {
        "rows": rows,
        "rates": steady_rates,
        "job over engine, two threads": best["one worker, two threads"] / best["engine, two threads"],
        "job over engine, one thread": best["one worker, one thread"] / best["engine, one thread"],
        "two workers over two engines": best["two workers, one thread each"] / best["two engines, one thread each"],
        "two workers over one": best["two workers, one thread each"] / best["one worker, one thread"],
        "two engines over one": best["two engines, one thread each"] / best["engine, one thread"],
    }


class Sleeper:
    """A worker that sleeps instead of computing: each shard needs `seconds`, independent of the machine's load."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.engine = seconds, threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self.engine:
            began = time.time()
            time.sleep(self.seconds)
        return {"task": batch["task"], "began": np.array([began]), "pid": np.array([os.getpid()])}


def sleeping_rate(workers: int, seconds: float, per_worker: int) -> float:
    """Shards per second while all workers are busy."""
    tasks = [{"task": str(i)} for i in range(workers * per_worker)]
    starts: dict[int, float] = {}
    done = []
    for report in pooled(
        Sleeper, {"seconds": seconds}, tasks, (workers, workers), cpus=0.01, gpus=0.0, patience_s=1800
    ):
        starts.setdefault(int(report["pid"]), float(report["began"]))
        done.append(float(report["began"]) + seconds)
    # From the start of the last worker to the time when the first worker may run out of tasks.
    begin, end = max(starts.values()), sorted(done)[-2 * workers] if workers > 1 else max(done)
    return sum(begin < at <= end for at in done) / (end - begin)


def many_workers(seconds: float, per_worker: int) -> dict[str, float]:
    one, many = sleeping_rate(1, seconds, per_worker), sleeping_rate(64, seconds, per_worker)
    return {
        "seconds_per_shard": seconds,
        "one": one,
        "sixty-four": many,
        "sixty-four over 64 times one": many / (64 * one),
    }


class Trivial:
    """A generator that computes nothing: latents (4, 2, 2), images of 8 × 8."""

    latent_shape, image_size, device = (4, 2, 2), (8, 8), torch.device("cpu")
    trainable = torch.nn.Identity()
    loaded_fingerprint = None

    def base_noise(self, seeds: list[int]) -> torch.Tensor:
        return torch.ones(len(seeds), *self.latent_shape)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        return Condition({"x": torch.zeros(len(prompts), 1)})

    def count_truncated(self, prompts: list[str]) -> int:
        return 0

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, *self.latent_shape)

    def denoise(self, noise: torch.Tensor, condition: Condition) -> torch.Tensor:
        return noise

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


@dataclass(frozen=True)
class TrivialSearch(EngineSearch):
    """The real search with that generator, one evaluation per image."""

    def generator(self, device: str) -> Any:
        return Trivial()


def plain_pairs(folder: Path, rows: int) -> Path:
    """A pair set of `rows` rows over one small image."""
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "grey").save(folder / "x.png")
    with (folder / "pairs.jsonl").open("w") as stream:
        for i in range(rows):
            stream.write(f'{{"prompt": "number {i % 100}", "image": "x.png"}}\n')
    return folder


def memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def driver_at(rows: int, scratch: Path) -> dict[str, float]:
    """Memory and speed of the driver for `rows` rows; runs in a separate process."""
    job = AssignJob(
        pairs=plain_pairs(scratch / "pairs", rows),
        model=MODEL,
        out=scratch / "out",
        patch_size=1,
        steps=1,
        slots=64,
        sensitivity_rank=0,
        cpus_per_decoder=0,
        store_latents=False,
    )
    began = time.perf_counter()
    ledger, pairs, todo = todo_of(job)
    planned = time.perf_counter()
    done, peak = [], 0.0
    search = TrivialSearch(
        job, ModelFolder.open(job.model), Reconstructing(job, Framing.at(Trivial.image_size)), ledger.plan, pairs
    )
    for receipt in receipts(job, ledger, todo, search):
        assert not receipt.error, receipt.error
        done.append((time.perf_counter(), receipt.assigned))
        peak = max(peak, memory_mb())
    worked = time.perf_counter()
    counts = ledger.finish()
    assert counts.assigned == rows
    return {
        "rows": rows,
        "shards": ledger.plan.shards,
        "rows_per_second": steady(done),
        "driver_mb": max(peak, memory_mb()),
        "plan_seconds": planned - began,
        "finish_seconds": time.perf_counter() - worked,
    }


def footers(scratch: Path, files: int, rows_per_file: int) -> dict[str, float]:
    """Cost of the plan for many Parquet files. All rows are equal, so footers are realistic and pages tiny."""
    table = pa.table({"prompt": pa.repeat("x", rows_per_file), "image": pa.repeat("a.png", rows_per_file)})
    first = scratch / "pairs" / "00000.parquet"
    first.parent.mkdir(parents=True)
    pq.write_table(table, first, row_group_size=10_000)
    for i in range(1, files):
        shutil.copyfile(first, first.with_name(f"{i:05d}.parquet"))
    before, began = memory_mb(), time.perf_counter()
    pairs = PairSet(first.parent)
    rows_per_shard = pairs.rows_per_shard()
    shards = pairs.shards(rows_per_shard)
    pairs.fingerprint()
    seconds = time.perf_counter() - began
    grown = memory_mb() - before
    return {
        "rows": pairs.rows(),
        "files": files,
        "rows_per_shard": rows_per_shard,
        "shards": len(shards),
        "seconds": seconds,
        "memory_mb": grown,
        "bytes_per_shard": grown * 2**20 / len(shards),
    }


def in_own_process(*argv: str) -> dict[str, float]:
    """Run this program with `argv` in another process; returns the JSON in its last line."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.assign_scale", *argv],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(what: str) -> dict[str, float]:
    kind, _, rest = what.partition(":")
    if kind.startswith("engine-"):
        return engine_rate(AssignJob(**json.loads(rest)), int(kind.removeprefix("engine-")))
    with tempfile.TemporaryDirectory() as scratch, ray_session():
        return driver_at(int(rest), Path(scratch))


def figures(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted = args.only or ["plan", "rows", "workers", "engine"]
    if "plan" in wanted:
        yield "plan of Parquet footers", footers(scratch / "plan", args.files, args.rows_per_file)
    if "rows" in wanted:
        few, many = (in_own_process("--child", f"driver:{rows}") for rows in args.rows)
        yield (
            "rows",
            {
                "few": few,
                "many": many,
                "driver memory, many over few": many["driver_mb"] / few["driver_mb"],
                "rows per second, many over few": many["rows_per_second"] / few["rows_per_second"],
            },
        )
    if "workers" in wanted:
        with ray_session():
            yield "workers", many_workers(args.sleep, args.per_worker)
    if "engine" in wanted:
        with ray_session():
            yield "engine", against_the_engine(scratch / "engine", args.engine_rows, args.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["plan", "rows", "workers", "engine"])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rows-per-file", type=int, default=100_000)
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 1_000_000], metavar=("FEW", "MANY"))
    parser.add_argument("--sleep", type=float, default=8.0, help="seconds that a simulated worker spends on a shard")
    parser.add_argument("--per-worker", type=int, default=8, help="shards of each simulated worker")
    parser.add_argument("--engine-rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, result in figures(args, Path(scratch)):
            results[name] = result
            print(f"{name}: {json.dumps(result, indent=1)}", flush=True)
            write_results(results, args.out)


if __name__ == "__main__":
    main()
