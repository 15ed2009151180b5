"""The search problem of the E-step benchmarks: a generator, held-out pairs, and the loss at a noise.

Axes: B images, C × H × W noise maps, K evaluations.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import imle_generator
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine, Found
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.queue import Request, requests_of
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.protocol import Condition, OneStepGenerator
from ortho_core.losses import mean_square
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.pairs.decoding import to_images
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair

#: One third of an evaluation: a forward pass without its backward pass.
FORWARD = 1 / 3


def load(name: str) -> OneStepGenerator:
    """tiny-turbo (SDXL-type: latents, attention, autoencoder) or imle (pixels, convolutions)."""
    return load_generator(ModelFolder.open("models/tiny-turbo")) if name == "tiny-turbo" else imle_generator.load()


@dataclass(frozen=True)
class Problem:
    """B images that are searched together, with the same budget each."""

    generator: OneStepGenerator
    condition: Condition
    targets: Tensor
    seeds: list[int]
    prompts: list[str]
    patch_size: int

    @staticmethod
    def of(name: str, pairs: Path, count: int, patch_size: int, seed: int) -> "Problem":
        generator = load(name)
        source = PairSet(pairs)
        rows = [row for shard in source.shards(64) for row in source.read(shard) if isinstance(row, Pair)][:count]
        images = to_images(source.images(rows, generator.image_size))
        prompts = [row.prompt for row in rows]
        with torch.no_grad():
            condition, targets = generator.encode_prompts(prompts), generator.encode_images(images)
        return Problem(
            generator, condition, targets, [noise_seed(seed, row.sample_id) for row in rows], prompts, patch_size
        )

    @property
    def base(self) -> Tensor:
        return self.generator.base_noise(self.seeds)

    @torch.no_grad()
    def losses(self, noise: Tensor) -> Tensor:
        """Losses (B,), with forward passes only."""
        return mean_square(self.generator.denoise(noise, self.condition), self.targets)

    def evaluate(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One evaluation each: losses (B,) and gradients in the noise (B, C, H, W)."""
        noise = noise.detach().requires_grad_(True)
        losses = mean_square(self.generator.denoise(noise, self.condition), self.targets)
        (gradient,) = torch.autograd.grad(losses.sum(), noise)
        return losses.detach(), gradient

    def requests(self, config: AssignConfig, images: int | None = None) -> list[Request]:
        """The engine's requests for the first images (default: all), by index."""
        inputs = Reconstruction(self.generator, config).inputs(self.condition, self.targets, None)
        seeds = self.seeds[:images]
        return list(requests_of(range(len(seeds)), seeds, inputs))

    def search(self, config: AssignConfig, slots: int = 32) -> list[Found]:
        """The engine's results for all images, in order."""
        engine = Engine(self.generator, config, min(slots, len(self.seeds)))
        return sorted(engine.run(self.requests(config)), key=lambda one: int(one.key))

    def random_noise(self, name: str | int) -> Tensor:
        """Another noise map for each image."""
        return seeded_normal([noise_seed(seed, name) for seed in self.seeds], self.generator.latent_shape)


@dataclass(frozen=True)
class Curve:
    """The course of a search: after `cost[k]` evaluations per image, the lowest loss of each image so far is `best[k]`."""

    cost: list[float]
    best: Tensor  # (K, B)

    @staticmethod
    def of(losses: list[Tensor], before: float = 0.0) -> "Curve":
        """From the losses of successive evaluations; `before` evaluations are spent before the first."""
        return Curve([before + k + 1 for k in range(len(losses))], torch.stack(losses).cummin(0).values)

    def at(self, budget: float) -> Tensor:
        """(B,): the lowest losses within a budget; infinite before the first evaluation ends."""
        affordable = [k for k, cost in enumerate(self.cost) if cost <= budget + 1e-9]
        return self.best[affordable[-1]] if affordable else torch.full_like(self.best[0], float("inf"))

    def reaches(self, loss: float) -> float:
        """The number of evaluations after which the mean loss is at most `goal`; infinite if it never is."""
        means = self.best.mean(1)
        return next((cost for cost, mean in zip(self.cost, means, strict=True) if mean <= loss), float("inf"))

    def each_reaches(self, losses: Tensor) -> Tensor:
        """(B,): the number of evaluations after which the loss of each image is at most its entry in `losses`."""
        reached = self.best <= losses
        cost = torch.tensor(self.cost)[reached.int().argmax(0)]
        return torch.where(reached.any(0), cost, torch.inf)
