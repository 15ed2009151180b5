"""Gain and cost of reward optimisation: `python -m benchmarks.rewards --mnist DIR --out runs/rewards.json`.

gain: tiny-clip's score of tiny-turbo's images for 64 prompts, before and after 20 evaluations, and the share of images in which a
classifier, trained only on real digits, recognises the prompt's digit. Several seeds of the base noise.
throughput: prompts per second with all prompts in one batch over one at a time, with the same evaluations, in turns.
overhead: one evaluation over a bare forward and backward of generator, autoencoder and reward with the same batch, in turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.estep_throughput import timed
from benchmarks.results import write_results
from models.recipes.digits import COLOURS, DIGITS, caption
from models.recipes.score import train_classifier
from ortho_core.estep.config import SearchConfig
from ortho_core.estep.engine import Engine, Found
from ortho_core.estep.queue import requests_of
from ortho_core.estep.space import noise_space
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache, TextCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes
from ortho_core.rewards.combined import WeightedSum, load_rewards
from ortho_core.rewards.objective import RewardObjective

MODEL, CLIP = Path("models/tiny-turbo"), Path("ortho_core/evaluation/tiny-clip")


class Problem:
    """The first prompts in a fixed order, the inputs of their rewards, and base noises of one seed."""

    def __init__(self, generator: OneStepGenerator, rewards: WeightedSum, count: int, seed: int) -> None:
        stream = torch.Generator().manual_seed(64)
        whole = [(digit, colours) for digit in range(len(DIGITS)) for colours in COLOURS]
        chosen = [whole[i] for i in torch.randperm(len(whole), generator=stream)[:count].tolist()]
        self.digits = torch.tensor([digit for digit, _ in chosen])
        texts = [caption(digit, *colours) for digit, colours in chosen]
        self.generator, self.objective = generator, RewardObjective(generator, rewards)
        self.condition = PromptCache(generator)(texts)
        self.inputs = self.objective.inputs(self.condition, TextCache(rewards.encode_prompts)(texts))
        self.seeds = [noise_seed(seed, "reward benchmark", i) for i in range(count)]

    def search(self, config: SearchConfig, slots: int, count: int | None = None) -> list[Found]:
        keys = range(len(self.seeds[:count]))
        requests = requests_of(keys, self.seeds[:count], self.inputs)
        engine = Engine(self.generator, config, slots, self.objective)
        return sorted(engine.run(requests), key=lambda found: int(found.key))

    @torch.no_grad()
    def images(self, noise: torch.Tensor) -> torch.Tensor:
        return to_bytes(self.generator.decode(self.generator.denoise(noise, self.condition))).float() / 255


def gain(make: Callable[[int], Problem], config: SearchConfig, seeds: int, judge: torch.nn.Module) -> dict[str, Any]:
    rows = []
    for seed in range(seeds):
        problem = make(seed)
        found = problem.search(config, 32)
        base = problem.generator.base_noise(problem.seeds)
        parameters = torch.stack([one.parameters for one in found])
        noise = noise_space(config, problem.generator.latent_shape).noise(base, parameters)
        before = torch.tensor([one.history["clip"][0] for one in found])
        after = torch.tensor([one.best("clip") for one in found])
        with torch.no_grad():
            right = [(judge(problem.images(n)).argmax(1) == problem.digits).float().mean() for n in (base, noise)]
        rows.append([(after > before).float().mean(), before.mean(), after.mean(), *right])
    names = ("improved", "clip_before", "clip_after", "digit_before", "digit_after")
    return dict(zip(names, torch.tensor(rows).mean(0).tolist(), strict=True)) | {"seeds": seeds}


def throughput(problem: Problem, config: SearchConfig, count: int, rounds: int) -> dict[str, float]:
    """A configuration in which every search makes all of its evaluations."""
    whole = config.model_copy(update={"patience": 0, "sensitivity_rank": 0})
    seconds: dict[int, list[float]] = {1: [], count: []}
    for _ in range(rounds):
        for slots in seconds:
            seconds[slots].append(timed(lambda slots=slots: problem.search(whole, slots, count)))  # type: ignore[misc]
    one, many = (count / statistics.median(seconds[slots]) for slots in (1, count))
    return {"slots": count, "prompts_per_second": many, "one_at_a_time": one, "ratio": many / one}


def overhead(problem: Problem, config: SearchConfig, batch: int, rounds: int) -> dict[str, float]:
    whole = config.model_copy(update={"patience": 0, "sensitivity_rank": 0})
    noise = problem.generator.base_noise(problem.seeds[:batch])
    inputs = {name: tensor[:batch] for name, tensor in problem.inputs.items()}

    def bare() -> None:
        for _ in range(whole.steps):
            leaf = noise.clone().requires_grad_(True)
            torch.autograd.grad(problem.objective(leaf, inputs)["total"].sum(), leaf)

    seconds: dict[str, list[float]] = {"bare": [], "search": []}
    for k in range(rounds + 1):
        for name, call in (("bare", bare), ("search", lambda: problem.search(whole, batch, batch))):
            spent = timed(call) / whole.steps
            if k:
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"batch": batch, **medians, "over_bare": medians["search"] / medians["bare"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--mnist", type=Path, help="folder with the four IDX files; without it the gain is not measured"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=32, help="of the throughput and overhead tables")
    parser.add_argument("--classifier-steps", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator, rewards = load_generator(ModelFolder.open(MODEL)), load_rewards("clip", {"clip": CLIP})
    judge = train_classifier(args.mnist, args.classifier_steps) if args.mnist else None
    found: dict[str, Any] = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    for p in args.patch_sizes:
        config = SearchConfig(patch_size=p, steps=args.evaluations)
        problem = Problem(generator, rewards, args.prompts, 0)
        table: dict[str, Any] = {}
        if judge is not None:
            table["gain"] = gain(
                lambda seed: Problem(generator, rewards, args.prompts, seed), config, args.seeds, judge
            )
        table["throughput"] = throughput(problem, config, args.slots, args.rounds)
        table["overhead"] = overhead(problem, config, args.slots, args.rounds)
        found[f"p = {p}"] = table
    print(json.dumps(found, indent=1))
    write_results(found, args.out)


if __name__ == "__main__":
    main()
