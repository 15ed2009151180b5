"""Validation during training: held-out rows at their assigned noise, and the change of the outputs at random noise.

Axes: V held-out rows of this worker, C × H × W noise, c × h × w latents, 3 × Y × X images.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.losses import mean_square
from ortho_core.mstep.teacher import Teacher
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes
from ortho_core.records.assignments import Assignments

#: Columns of the table of figures, which has one row per held-out row.
ERRORS = ("latent", "drift")


@dataclass(frozen=True)
class Validation:
    """Fixed inputs, the same for every measurement of a run and of a resumed run."""

    prompts: list[str]
    matched: Float[Tensor, "V C H W"]
    targets: Float[Tensor, "V c h w"]
    random: Float[Tensor, "V C H W"]
    #: The latents of the starting model at `random`; drift is measured from them.
    before: Float[Tensor, "V c h w"]
    batch_size: int

    @staticmethod
    @torch.no_grad()
    def of(
        assignments: Assignments,
        rows: range,
        generator: OneStepGenerator,
        teacher: Teacher | None,
        prompts: PromptCache,
        batch_size: int,
        center: np.ndarray | None = None,
    ) -> "Validation":
        """Build the inputs from `rows` of a held-out set's assignments, before the first update changes the generator.

        `center` (C, H, W) is subtracted from their noise, as from the noise of the training rows. `before` comes from the
        teacher if there is one, else from the generator. The random noise is the same in every run.
        """
        shape, index = generator.latent_shape, list(rows)
        listed = assignments.rows(index, ["sample_id", "prompt"])
        seeds = [noise_seed(0, "validation", row["sample_id"]) for row in listed]
        matched, random = assignments.noise(index, shape), generator.base_noise(seeds)
        if center is not None:
            matched = matched - torch.from_numpy(center)
        texts = [row["prompt"] for row in listed]
        with teacher.standing_in(generator) if teacher is not None else nullcontext():
            before = _denoise(generator, prompts, texts, random, batch_size)
        c, h, w = before.shape[1:]
        targets = assignments.targets(index, (c, h, w)).to(generator.device)
        return Validation(texts, matched.to(generator.device), targets, random, before, batch_size)

    def _denoise(self, generator: OneStepGenerator, prompts: PromptCache, noise: Tensor) -> Tensor:
        return _denoise(generator, prompts, self.prompts[: len(noise)], noise, self.batch_size)

    @torch.no_grad()
    def measure(self, generator: OneStepGenerator, prompts: PromptCache) -> tuple[np.ndarray, Tensor]:
        """The squared error at matched noise and the squared drift at random noise of each row, (V, 2).

        Both are means over the latent: mean((f_θ(Qε,c) - E(x))²) and mean((f_θ(ε',c) - f_0(ε',c))²). Also returns the model's
        latents at the random noise, for `picture`.
        """
        error = mean_square(self._denoise(generator, prompts, self.matched), self.targets)
        samples = self._denoise(generator, prompts, self.random)
        drift = mean_square(samples, self.before)
        return torch.stack([error, drift], 1).cpu().numpy(), samples

    @torch.no_grad()
    def picture(
        self, generator: OneStepGenerator, prompts: PromptCache, samples: Tensor, count: int = 8
    ) -> list[UInt8[Tensor, "V 3 Y X"]]:
        """Rows of uint8 images: targets, current images at matched noise, random samples of the start and current ones."""
        made = self._denoise(generator, prompts, self.matched[:count])
        latents = (self.targets[:count], made, self.before[:count], samples[:count])
        # In batches as small as those of training: images need more memory than latents.
        return [
            torch.cat([to_bytes(generator.decode(p)) for p in torch.split(each, self.batch_size)]) for each in latents
        ]


def _denoise(
    generator: OneStepGenerator, prompts: PromptCache, texts: list[str], noise: Tensor, batch_size: int
) -> Tensor:
    parts = [slice(k, k + batch_size) for k in range(0, len(noise), batch_size)]
    return torch.cat([generator.denoise(noise[part], prompts(texts[part])) for part in parts])


#: Labels of the rows of `picture`.
PICTURE = ("held-out targets", "at their matched noise", "random noise, before", "random noise, now")


def figures(tables: list[np.ndarray]) -> dict[str, float]:
    """The mean of each figure over all rows of all workers."""
    means = np.concatenate(tables).mean(0)
    return {name: float(value) for name, value in zip(ERRORS, means, strict=True)}
