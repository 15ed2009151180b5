"""Images of five sizes of one area against one size: `python -m benchmarks.buckets --out docs/results/figures/buckets.json`.

The same pictures, a fifth of each of five shapes, are assigned and trained on twice: at five sizes of equal area, and cropped to
the square of that area. Both runs alternate in one process, with one thread. The E-step is a worker's: shards of 64 rows, two of
them under way at a time, images decoded in threads; its rate is that between the first shard and the last, and that with the
start, in which the sensitivity of each size is measured. The M-step's rate is that of whole epochs, with the reading of shares.

It also reports the area that crops cut off: of the formats of cameras and phones, and of shapes between 1:2 and 2:1.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.results import ROOT, write_results
from ortho_core.framing.framing import USUAL_MOST_LOST, Framing, auto_sizes
from ortho_core.generators.load import load_generator
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.data import to_batch
from ortho_core.mstep.update import MStep
from ortho_core.pairs.survey.framed import Taken
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignJob
from rayjobs.assign.worker import search_of
from rayjobs.pool.worker import OwnProcess
from rayjobs.train.config import TrainJob
from rayjobs.train.job import make_plan
from rayjobs.train.models import TrainModels

MODEL, PAIRS = Path("models/tiny-turbo"), ROOT / "examples" / "digits"
#: Five sizes (width, height) of 9,216 pixels.
SIZES = ((64, 144), (72, 128), (96, 96), (128, 72), (144, 64))
#: Formats of cameras, phones and screens.
FORMATS = ((1, 1), (4, 5), (5, 4), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))
SHARD, UNDER_WAY, SLOTS, BATCH = 64, 2, 16, 16


def written(folder: Path, rows: int) -> Path:
    """Digits on canvases of the five shapes, in turn."""
    (folder / "images").mkdir(parents=True)
    lines = [json.loads(line) for line in (PAIRS / "pairs.jsonl").read_text().splitlines()[:rows]]
    with (folder / "pairs.jsonl").open("w") as stream:
        for number, line in enumerate(lines):
            width, height = SIZES[number % len(SIZES)]
            side = min(width, height)
            with Image.open(PAIRS / line["image"]) as opened:
                digit = opened.convert("RGB")
            canvas = Image.new("RGB", (width, height), digit.getpixel((0, 0)))
            canvas.paste(digit.resize((side, side)), ((width - side) // 2, (height - side) // 2))
            canvas.save(folder / "images" / f"{number:04d}.png")
            stream.write(json.dumps({"prompt": line["prompt"], "image": f"images/{number:04d}.png"}) + "\n")
    return folder


class Here(OwnProcess):
    """A worker in this process that has several shards under way, as an actor has."""

    concurrent = True


def e_step(job: AssignJob) -> dict[str, float]:
    """Rows per second of one worker: after the first shard, and with the start; and the share of evaluations that were rows'."""
    model, _ = assign.opened(job)
    plan, pairs, shards = assign.make_plan(job, model)
    searcher = search_of(job, model, plan, pairs).load(Here("cpu", 1), [])
    began, done, lock, todo = time.perf_counter(), list[tuple[float, int, int]](), threading.Lock(), iter(shards)

    def work() -> None:
        while True:
            with lock:
                shard = next(todo, None)
            if shard is None:
                return
            result = searcher.search(shard, None)
            done.append((time.perf_counter(), len(result.rows), result.evaluations))

    threads = [threading.Thread(target=work) for _ in range(UNDER_WAY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows, (first, *_), last = sum(count for _, count, _ in done), done[0], done[-1][0]
    return {
        "steady": (rows - done[0][1]) / (last - first),
        "with_start": rows / (last - began),
        "filled": sum(each for *_, each in done) / searcher.usage().computed,
    }


def m_step(job: TrainJob, epochs: int) -> float:
    """Images per second over whole epochs, the first left out."""
    models = TrainModels.open(job)
    _, data = make_plan(job, models)
    generator = load_generator(models.model)
    step, prompts = MStep(generator, MStepConfig(), 10_000), PromptCache(generator)
    images, began = 0, 0.0
    for epoch in range(epochs + 1):
        if epoch == 1:
            began = time.perf_counter()
        for number in range(data.order.updates):
            parts = [to_batch(part, generator, prompts, False) for part in data.share(epoch, number).parts]
            step.update(parts[0] if parts[0].weights is None else parts)
            images += BATCH * (epoch > 0)
    return images / (time.perf_counter() - began)


def rates(scratch: Path, rows: int, rounds: int) -> dict[str, Any]:
    pairs = written(scratch / "pairs", rows)
    several = ",".join(f"{X}x{Y}" for X, Y in SIZES)
    options = {"five": {"buckets": several}, "one": {"size": "96x96"}}
    search = {"steps": 6, "patience": 0, "slots": SLOTS, "rows_per_shard": SHARD, "workers": "0", "report": False}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in options}
    for name, sized in options.items():
        assign.run(AssignJob(pairs=str(pairs), model=MODEL, out=str(scratch / name), **{**search, "steps": 2}, **sized))
    for _ in range(rounds):
        for name, sized in options.items():
            job = AssignJob(pairs=str(pairs), model=MODEL, out=str(scratch / "unused"), **search, **sized)
            for what, rate in e_step(job).items():
                found[name].setdefault(f"e_step_{what}", []).append(rate)
            train = TrainJob(
                assignments=str(scratch / name),
                model=MODEL,
                out=scratch / "trained",
                batch_size=BATCH,
                preserve_prompts="training",
            )
            found[name].setdefault("m_step", []).append(m_step(train, 1))
            print(name, {what: round(each[-1], 2) for what, each in found[name].items()}, flush=True)
    middle = {name: {what: statistics.median(each) for what, each in of.items()} for name, of in found.items()}
    ratios = {what: round(middle["five"][what] / middle["one"][what], 3) for what in middle["one"]}
    return {"rows": rows, "rounds": rounds, "rates": found, "five over one": ratios}


def crops() -> dict[str, dict[str, float]]:
    """The shares of a picture that crops cut off: with automatic sizes, with one square, and the ratio of both."""
    shapes = 2 ** np.random.default_rng(0).uniform(-1, 1, 2000)
    sets = {
        "formats of cameras and phones": [(400 * Y, 400 * X) for X, Y in FORMATS],
        "shapes from 1:2 to 2:1": [(1000, int(1000 * shape)) for shape in shapes],
    }
    found = {}
    for resolution, step in ((512, 32), (512, 64), (1024, 64)):
        framing = Framing(auto_sizes(resolution, step), most_lost=USUAL_MOST_LOST)
        for name, pictures in sets.items():
            taken = Taken.of(framing, pictures)
            found[f"{name}, {resolution} pixels in steps of {step}"] = {
                "sizes": len(framing.sizes),
                "mean": round(taken.mean_lost, 4),
                "most": round(taken.most_lost, 4),
                "square": round(taken.square_lost, 4),
                "ratio": round(taken.mean_lost / taken.square_lost, 3),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        results = rates(Path(scratch), options.rows, options.rounds)
    results["crops"] = crops()
    for what, ratio in results["five over one"].items():
        print(f"{what}: five sizes over one {ratio}")
    for name, each in results["crops"].items():
        print(f"{name}: {each}")
    write_results(results, options.out)


if __name__ == "__main__":
    main()
