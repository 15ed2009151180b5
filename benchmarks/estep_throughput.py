"""Images per second compared with the reference loop: `python -m benchmarks.estep_throughput --out runs/throughput.json`.

The reference loop has one image at a time. Each evaluation is a forward, the decoded picture, a backward and an AdamW step of a
d × d matrix, as in the reference method, but without writing files. Ours is the engine with a pixel weight of 0, so that nothing
is decoded. Both have the same number of evaluations per image and the same number of threads, and run in turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.problem import Problem
from benchmarks.results import write_results
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine
from ortho_core.generators.protocol import OneStepGenerator


def reference_loop(problem: Problem, images: int, evaluations: int) -> list[float]:
    """Run the reference loop on the first images; returns the lowest loss of each image."""
    generator, p = problem.generator, problem.patch_size
    C, H, W = generator.latent_shape
    d = C * p * p
    identity = torch.eye(d, device=generator.device)
    best = []
    for i in range(images):
        base = generator.base_noise([problem.seeds[i]])
        condition, target = problem.condition[[i]], problem.targets[[i]]
        raw = (1e-4 * torch.randn(d, d, device=generator.device)).requires_grad_(True)
        optimizer = torch.optim.AdamW([raw], lr=5e-4, weight_decay=0.0)
        lowest = float("inf")
        for _ in range(evaluations):
            A = raw - raw.T
            Q = torch.linalg.solve(identity + A, identity - A)
            patches = base.reshape(C, H // p, p, W // p, p).permute(1, 3, 0, 2, 4).reshape(-1, d)
            noise = (patches @ Q.T).reshape(H // p, W // p, C, p, p).permute(2, 0, 3, 1, 4).reshape(1, C, H, W)
            latents = generator.denoise(noise, condition)
            generator.decode(latents)
            loss = (latents - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lowest = min(lowest, loss.item())
        best.append(lowest)
    return best


def bare(problem: Problem, batch: int) -> Callable[[], None]:
    """One forward and backward of only the network, for the gradient in its input."""
    generator: OneStepGenerator = problem.generator
    noise = generator.base_noise(problem.seeds[:batch]).requires_grad_(True)
    condition = problem.condition[list(range(batch))]

    def once() -> None:
        output = generator.denoise(noise, condition)
        torch.autograd.grad(output, noise, torch.ones_like(output))
        synchronize(generator.device)

    return once


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def evaluation_overhead(problem: Problem, slots: int, rounds: int) -> tuple[float, float]:
    """Seconds of one engine evaluation and of a bare forward and backward, with the same batch, in turns."""
    config = AssignConfig(steps=8, patience=0)
    engine, bare_step = Engine(problem.generator, config, slots), bare(problem, slots)
    work = problem.requests(config, slots)
    whole, alone = [], []

    def search() -> None:
        for _ in engine.run(work):
            pass

    def eight_bare() -> None:
        for _ in range(8):
            bare_step()

    search()  # measures the sensitivity, once per model
    eight_bare()
    for _ in range(rounds):
        whole.append(timed(search) / 8)
        alone.append(timed(eight_bare) / 8)
    return statistics.median(whole), statistics.median(alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=Path("examples/digits/heldout.jsonl"))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--reference-images", type=int, default=8, help="images of one round of the reference loop")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problem = Problem.of("tiny-turbo", args.pairs, args.images, 2, 0)
    config = AssignConfig(steps=args.evaluations, patience=0)
    reference_seconds: list[float] = []
    ours: dict[int, list[float]] = {slots: [] for slots in args.slots}
    losses, lowest = [0.0], [0.0]
    for _ in range(args.rounds):
        for slots in args.slots:

            def search(slots: int = slots) -> None:
                nonlocal lowest
                found = Engine(problem.generator, config, slots).run(problem.requests(config, args.images))
                lowest = [one.best("total") for one in found]

            ours[slots].append(timed(search) / args.images)

            def loop() -> None:
                nonlocal losses
                losses = reference_loop(problem, args.reference_images, args.evaluations)

        reference_seconds.append(timed(loop) / args.reference_images)
    base = statistics.median(reference_seconds)
    print(
        f"tiny-turbo, {args.evaluations} evaluations per image, {args.threads} thread(s), PyTorch {torch.__version__}"
    )
    print(f"reference loop, one image at a time: {1 / base:.3f} images/s")
    rates = {slots: base / statistics.median(seconds) for slots, seconds in ours.items()}
    for slots, ratio in rates.items():
        print(f"ours, {slots:3d} slots: {ratio / base:.3f} images/s, {ratio:.2f} times the reference loop")
    found: dict[str, Any] = {"reference_images_per_second": 1 / base, "ratio_by_slots": rates}
    goal = statistics.fmean(reference_loop(problem, args.images, args.evaluations))
    fewest = fewest_evaluations(problem, config, args.images, max(args.slots), goal)
    to_goal = AssignConfig(steps=fewest, patience=0)
    engine_seconds = timed(
        lambda: list(Engine(problem.generator, to_goal, max(args.slots)).run(problem.requests(to_goal, args.images)))
    )
    found |= {
        "reference_loss": goal,
        "evaluations_to_it": fewest,
        "equal_loss_ratio": base * args.images / engine_seconds,
    }
    print(
        f"to the reference's mean loss of {goal:.4f}: {fewest} evaluations, {max(args.slots)} slots, "
        f"{found['equal_loss_ratio']:.1f} times the images per second, including the measurement of the sensitivity"
    )
    found["overhead_by_slots"] = {}
    for slots in args.slots:
        whole, alone = evaluation_overhead(problem, slots, 3 * args.rounds)
        found["overhead_by_slots"][slots] = whole / alone
        print(f"one evaluation over a bare forward + backward, batch {slots:3d}: {whole / alone:.3f}")
    write_results(found, args.out)


def fewest_evaluations(problem: Problem, config: AssignConfig, images: int, slots: int, goal: float) -> int:
    """The number of evaluations after which the engine's mean lowest loss is at most the goal."""
    found = Engine(problem.generator, config, slots).run(problem.requests(config, images))
    best = torch.stack([torch.from_numpy(one.history["total"]).cummin(0).values for one in found]).mean(0)
    reached = (best <= goal).nonzero()
    if not len(reached):
        raise SystemExit(f"the goal of {goal:.4f} was not reached in {config.steps} evaluations")
    return int(reached[0]) + 1


if __name__ == "__main__":
    main()
