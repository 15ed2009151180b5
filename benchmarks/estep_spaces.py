"""Loss and Gaussianity of larger search spaces: `python -m benchmarks.estep_spaces --out runs/spaces.json`.

Compared are one rotation per image, one per region, and free noise with a Gaussian prior, on the same images with the same
evaluations. The last columns have the largest departure of the pooled assigned noise from N(0, I), in null standard deviations,
and that of the base noise of the same images. The savings of the stopping rule are measured with one rotation per image.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.problem import Problem
from benchmarks.results import write_results
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Found
from ortho_core.estep.space import noise_space
from ortho_core.noise.gaussianity import departures, noise_statistics
from ortho_core.noise.seeded import noise_seed

BUDGETS = (5, 10, 20, 40)
#: Base noises that are searched in turn, to see how much the loss depends on the base noise of an image.
STARTS = 6
SPACES: dict[str, dict[str, Any]] = {
    "one rotation, p = 1": {"patch_size": 1},
    "one rotation, p = 2": {"patch_size": 2},
    "one rotation, p = 4": {"patch_size": 4},
    "regions 2 × 2, p = 1": {"patch_size": 1, "regions": 2},
    "regions 2 × 2, p = 2": {"patch_size": 2, "regions": 2},
    "regions 4 × 4, p = 2": {"patch_size": 2, "regions": 4},
    "free, prior 2": {"transform": "free", "prior_weight": 2.0},
    "free, prior 0.5": {"transform": "free", "prior_weight": 0.5},
    "free, prior 0.1": {"transform": "free", "prior_weight": 0.1},
    "free, no prior": {"transform": "free", "prior_weight": 0.0},
}


def latent_at(found: list[Found], budget: int) -> float:
    """Mean latent loss at the point with the lowest total loss within a budget."""
    best = [int(one.history["total"][:budget].argmin()) for one in found]
    return statistics.fmean(float(one.history["latent"][k]) for one, k in zip(found, best, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=Path("examples/digits/heldout.jsonl"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--generators", nargs="+", default=["tiny-turbo", "imle"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for name in args.generators:
        problem = Problem.of(name, args.pairs, args.images, 2, 0)
        print(f"\n{name}: {args.images} images, latent loss; departures of the pooled noise from N(0, I)")
        print(
            f"{'':22s} {'numbers':>8s}" + "".join(f"{f'at {b}':>8s}" for b in BUDGETS) + "   power  largest departure"
        )
        base = departures(noise_statistics(problem.base, 2))
        first = next(iter(base.items()))
        print(f"{'base noise':22s} {'':40s} {float(problem.base.square().mean()):7.3f}  {first[0]} {first[1]:.1f}")
        result[name] = {"base": base}
        for title, settings in SPACES.items():
            config = AssignConfig(steps=40, patience=0, **settings)
            found = problem.search(config)
            space = noise_space(config, problem.generator.latent_shape)
            noise = space.noise(problem.base, torch.stack([one.parameters for one in found]))
            far = departures(noise_statistics(noise, 2))
            losses = [latent_at(found, budget) for budget in BUDGETS]
            power = float(noise.square().mean())
            result[name][title] = {
                "parameters": space.parameters,
                "losses": dict(zip(BUDGETS, losses, strict=True)),
                "power": power,
                "departures": far,
            }
            worst = ", ".join(f"{what} {value:.1f}" for what, value in list(far.items())[:2])
            print(
                f"{title:22s} {space.parameters:8d}" + "".join(f"{v:8.4f}" for v in losses) + f" {power:7.3f}  {worst}",
                flush=True,
            )
        print(f"\n{name}: what one rotation at p = 2 can reach, best of base noises with 40 evaluations each")
        lowest = torch.full((len(problem.seeds),), float("inf"))
        for k in range(STARTS):
            other = replace(problem, seeds=[noise_seed(seed, "start", k) for seed in problem.seeds])
            found = other.search(AssignConfig(steps=40, patience=0))
            lowest = torch.minimum(lowest, torch.tensor([one.best("latent") for one in found]))
            result[name][f"best of {k + 1}"] = float(lowest.mean())
            print(f"best of {k + 1}: {float(lowest.mean()):.4f}", flush=True)
        print(f"\n{name}: the stopping rule, at most 40 evaluations, one rotation, p = 2")
        for patience, tolerance in ((0, 0.0), (4, 1e-3), (4, 5e-3), (4, 2e-2), (2, 5e-3)):
            config = AssignConfig(steps=40, patience=patience, stop_tolerance=tolerance)
            found = problem.search(config)
            spent = statistics.fmean(one.evaluations for one in found)
            loss = statistics.fmean(one.best("total") for one in found)
            result[name][f"patience {patience}, tolerance {tolerance:g}"] = {"evaluations": spent, "loss": loss}
            print(
                f"patience {patience}, tolerance {tolerance:<6g}: {spent:5.1f} evaluations, loss {loss:.4f}", flush=True
            )
    write_results(result, args.out)


if __name__ == "__main__":
    main()
