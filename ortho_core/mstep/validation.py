"""Validation during training: held-out rows at their assigned noise, and the change of the outputs at random noise.

Axes: V held-out rows of this worker, C × H × W noise, c × h × w latents, 3 × Y × X images.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.generators.base import at_size
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import Condition, OneStepGenerator
from ortho_core.losses import mean_square
from ortho_core.mstep.data import map_at
from ortho_core.mstep.teacher import Teacher
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes
from ortho_core.records.assignments import Assignments

#: Columns of the table of figures, which has one row per held-out row.
ERRORS = ("latent", "drift")


#: The most rows in `Validation.picture`.
PICTURED_ROWS = 8


def validated_rows(
    held: Assignments, rows: int, rank: int, world: int, one_size: bool
) -> list[tuple[list[int], int | None]]:
    """The rows that a worker validates on, of `rows` rows: for each size of images its rows, and how many count.

    They are the first rows; of images of several sizes, by which the records are sorted, rows spread over the set. All workers
    have the same sizes, and equally many rows of each: a sharded network needs equal calls on all.
    """
    if one_size:
        each = rows // world
        return [(list(range(rank * each, (rank + 1) * each)), None)]
    by_size: dict[Frame | None, list[int]] = {}
    spread = [k * len(held) // rows for k in range(rows)]
    for row, frame in zip(spread, held.frames(spread), strict=True):
        by_size.setdefault(None if frame is None else Frame.plain(frame.size), []).append(row)
    found: list[tuple[list[int], int | None]] = []
    for same in by_size.values():
        each = -(-len(same) // world)
        mine = same[rank * each : (rank + 1) * each]
        found.append(([*mine, *same[:1] * (each - len(mine))], len(mine)))
    return found


@dataclass(frozen=True)
class Validation:
    """Fixed inputs of images of one size, the same for every measurement of a run and of a resumed run."""

    prompts: list[str]
    matched: Float[Tensor, "V C H W"]
    targets: Float[Tensor, "V c h w"]
    random: Float[Tensor, "V C H W"]
    #: The latents of the starting model at `random`; drift is measured from them.
    before: Float[Tensor, "V c h w"]
    batch_size: int
    #: The frame of each image that the model is told, and the plain frame of its size; None where they are as usual.
    matched_frames: list[Frame] | None = None
    random_frames: list[Frame] | None = None
    #: How many of the rows count; the others repeat one, so that all workers have equally many. None: all.
    counted: int | None = None

    @staticmethod
    @torch.no_grad()
    def of(
        assignments: Assignments,
        rows: Sequence[int],
        generator: OneStepGenerator,
        teacher: Teacher | None,
        prompts: PromptCache,
        batch_size: int,
        center: np.ndarray | None = None,
        framing: Framing | None = None,
        counted: int | None = None,
    ) -> "Validation":
        """Build the inputs from `rows` of a held-out set's assignments, before the first update changes the generator.

        The rows have images of one size. `center` (C, H, W) is subtracted from their noise, as from the noise of the training
        rows. `before` comes from the teacher if there is one, else from the generator. The random noise is the same in every
        run. `framing`: the sizes of the images, if they have several.
        """
        index, frames = list(rows), None
        if framing is not None:
            frames = [frame or Frame.plain(generator.image_size) for frame in assignments.frames(index)]
            generator = at_size(generator, frames[0].size)
        told = None if framing is None or frames is None else [framing.told(frame) for frame in frames]
        plain = None if frames is None else [Frame.plain(frame.size) for frame in frames]
        shape = generator.latent_shape
        listed = assignments.rows(index, ["sample_id", "prompt"])
        seeds = [noise_seed(0, "validation", row["sample_id"]) for row in listed]
        matched, random = assignments.noise(index, shape), generator.base_noise(seeds)
        if center is not None:
            matched = matched - torch.from_numpy(map_at(center, shape))
        texts = [row["prompt"] for row in listed]
        with teacher.standing_in(generator) if teacher is not None else nullcontext():
            before = _denoise(generator, prompts, texts, random, batch_size, plain)
        c, h, w = before.shape[1:]
        targets = assignments.targets(index, (c, h, w)).to(generator.device)
        return Validation(
            texts, matched.to(generator.device), targets, random, before, batch_size, told, plain, counted
        )

    def _denoise(
        self, generator: OneStepGenerator, prompts: PromptCache, noise: Tensor, frames: list[Frame] | None
    ) -> Tensor:
        return _denoise(generator, prompts, self.prompts[: len(noise)], noise, self.batch_size, frames)

    @torch.no_grad()
    def measure(self, generator: OneStepGenerator, prompts: PromptCache) -> tuple[np.ndarray, Tensor]:
        """The squared error at matched noise and the squared drift at random noise of each row that counts, (V, 2).

        Both are means over the latent: mean((f_θ(Qε,c) - E(x))²) and mean((f_θ(ε',c) - f_0(ε',c))²). Also returns the model's
        latents at the random noise, for `picture`.
        """
        error = mean_square(self._denoise(generator, prompts, self.matched, self.matched_frames), self.targets)
        samples = self._denoise(generator, prompts, self.random, self.random_frames)
        drift = mean_square(samples, self.before)
        return torch.stack([error, drift], 1)[: self.counted].cpu().numpy(), samples

    @torch.no_grad()
    def picture(
        self, generator: OneStepGenerator, prompts: PromptCache, samples: Tensor, count: int = PICTURED_ROWS
    ) -> list[UInt8[Tensor, "V 3 Y X"]]:
        """Rows of uint8 images: targets, current images at matched noise, random samples of the start and current ones."""
        made = self._denoise(generator, prompts, self.matched[:count], self.matched_frames)
        latents = (self.targets[:count], made, self.before[:count], samples[:count])
        # In batches as small as those of training: images need more memory than latents.
        return [
            torch.cat([to_bytes(generator.decode(p)) for p in torch.split(each, self.batch_size)]) for each in latents
        ]


def _denoise(
    generator: OneStepGenerator,
    prompts: PromptCache,
    texts: list[str],
    noise: Tensor,
    batch_size: int,
    frames: list[Frame] | None,
) -> Tensor:
    parts = [slice(k, k + batch_size) for k in range(0, len(noise), batch_size)]

    def condition(part: slice) -> Condition:
        encoded = prompts(texts[part])
        return encoded if frames is None else encoded.framed(frames[: len(noise)][part])

    return torch.cat([generator.denoise(noise[part], condition(part)) for part in parts])


#: Labels of the rows of `picture`.
PICTURE = ("held-out targets", "at their matched noise", "random noise, before", "random noise, now")


def figures(tables: list[np.ndarray]) -> dict[str, float]:
    """The mean of each figure over all rows of all workers."""
    means = np.concatenate(tables).mean(0)
    return {name: float(value) for name, value in zip(ERRORS, means, strict=True)}
