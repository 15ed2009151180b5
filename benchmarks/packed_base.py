"""The error of a quantised base: `python -m benchmarks.packed_base --out runs/packed_base.json`.

tiny-turbo with its linear layers in int8 and in nf4, compared with itself in float32:

- the step: relative errors of the latents and of the gradient in the noise, at plain noise and at found noise;
- the E-step: the loss, with the full model, at the noise that a search with the packed model finds;
- the M-step: an adapter is trained on the packed base and added to the full one. Its loss on held-out pairs, at the noise that a
  search with the full base found, over the loss of the base without adapter; three seeds.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

from benchmarks.precision import MODEL, apart, found_noise, noise_side
from benchmarks.problem import Problem
from benchmarks.results import write_results
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignJob
from rayjobs.train import job as train
from rayjobs.train.config import TrainJob

KINDS = ("none", "int8", "nf4")
PAIRS = Path("examples/digits")
PATCH = 2


def search(problem: Problem) -> dict[str, dict[str, float]]:
    """The errors of one step, and the loss at the noise that each search finds."""
    noises = {"plain": problem.base, "found": found_noise(problem)}
    exact = {name: noise_side(cast(DiffusersGenerator, problem.generator), problem, x) for name, x in noises.items()}
    table: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        packed = cast(DiffusersGenerator, load_generator(ModelFolder.open(MODEL), quantize=kind))
        row: dict[str, float] = {}
        for name, noise in noises.items():
            latents, gradient = noise_side(packed, problem, noise)
            row[f"latents at {name} noise"] = apart(latents, exact[name][0])
            row[f"gradient at {name} noise"] = apart(gradient, exact[name][1])
        found = found_noise(replace(problem, generator=packed))
        row["loss of the whole model at what it finds"] = float(problem.losses(found).mean())
        table[kind] = row
    return table


def adapter(problem: Problem, noise: Any, folder: Path, seeds: int, rows: int) -> dict[str, dict[str, float]]:
    """The held-out loss of the adapters over that of the base."""
    assigned = folder / "assigned"
    shared = {"model": Path(MODEL), "part": f"heldout:{rows}"}
    job = AssignJob(pairs=str(PAIRS), out=str(assigned), workers="0", patch_size=PATCH, steps=8, **shared)
    assert assign.run(job) == 0
    before = float(problem.losses(noise).mean())
    table = {}
    for kind in KINDS:
        after = []
        for seed in range(seeds):
            out = folder / f"{kind}-{seed}"
            settings = {
                "lora_rank": 8,
                "lr": 1e-3,
                "epochs": 8,
                "save_every": 0,
                "tensorboard": False,
                "num_workers": 0,
            }
            made = TrainJob(assignments=str(assigned), model=Path(MODEL), out=out, quantize=kind, seed=seed, **settings)
            assert train.run(made) == 0
            whole = load_generator(ModelFolder.open(out / "checkpoint-final"))
            after.append(float(replace(problem, generator=whole).losses(noise).mean()) / before)
        table[kind] = {"held-out loss over the base's": mean(after), "least": min(after), "most": max(after)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32, help="held-out pairs")
    parser.add_argument("--training-rows", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    problem = Problem.of("tiny-turbo", PAIRS / "heldout.jsonl", args.rows, PATCH, 0)
    with tempfile.TemporaryDirectory() as scratch:
        results = {
            "search": search(problem),
            "adapter": adapter(problem, found_noise(problem), Path(scratch), args.seeds, args.training_rows),
        }
    for what, table in results.items():
        for kind, row in table.items():
            print(f"{what:8}{kind:6}" + ", ".join(f"{name} {value:.4f}" for name, value in row.items()))
    write_results(results, args.out)


if __name__ == "__main__":
    main()
