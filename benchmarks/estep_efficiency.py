"""How many evaluations an assignment needs: `python -m benchmarks.estep_efficiency --out runs/efficiency.json`.

An evaluation is one forward and backward of the generator for one image; a forward alone counts as a third. The baseline, AdamW
at 5e-4 for 40 evaluations, runs in the same process on the same images. The images are held-out pairs, on which no generator
was trained.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks.problem import Curve, Problem
from benchmarks.results import write_results
from benchmarks.rivals import RIVALS, Search, ours, reference

BUDGETS = (5, 10, 20, 40)


def figures(curve: Curve, baseline: Curve) -> dict[str, float]:
    """The figures of one search, compared with the baseline's 40 evaluations."""
    goal = baseline.at(40)
    return {
        "reach": curve.reaches(float(goal.mean())),
        "reach_median": float(curve.each_reaches(goal).median()),
        **{f"loss_{budget}": float(curve.at(budget).mean()) for budget in BUDGETS},
        "ratio_40": float(curve.at(40).mean() / goal.mean()),
    }


def mean_over_seeds(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=Path("examples/digits/heldout.jsonl"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generators", nargs="+", default=["tiny-turbo", "imle"])
    parser.add_argument("--patch-sizes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--all", action="store_true", help="every search that was tried, not only the default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    searches: dict[str, Search] = RIVALS if args.all else {"reference": reference, "the default": ours}
    found: dict[str, dict[str, dict[str, float]]] = {}
    started = time.monotonic()
    for generator in args.generators:
        for patch_size in args.patch_sizes:
            title = f"{generator}, p = {patch_size}"
            problems = [Problem.of(generator, args.pairs, args.images, patch_size, seed) for seed in range(args.seeds)]
            baselines = [reference(problem, 40) for problem in problems]
            print(f"\n{title}: {args.images} images, {args.seeds} seeds; evaluations to the reference's loss at 40")
            print(f"{'':58s} {'mean':>6s} {'median':>6s}" + "".join(f"{f'at {b}':>8s}" for b in BUDGETS) + "   ratio")
            found[title] = {}
            for name, search in searches.items():
                runs = [
                    figures(baseline if search is reference else search(problem, 40), baseline)
                    for problem, baseline in zip(problems, baselines, strict=True)
                ]
                row = found[title][name] = mean_over_seeds(runs)
                losses = "".join(f"{row[f'loss_{b}']:8.4f}" for b in BUDGETS)
                print(
                    f"{name:58s} {row['reach']:6.1f} {row['reach_median']:6.1f}{losses} {row['ratio_40']:7.3f}",
                    flush=True,
                )
    print(f"\n{time.monotonic() - started:.0f} s; PyTorch {torch.__version__}, one thread")
    write_results(found, args.out)


if __name__ == "__main__":
    main()
