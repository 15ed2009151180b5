"""Batches for the M-step from an E-step's result, for a notebook or a script.

Axes: B rows of an update, P of its preserve terms, C × H × W noise.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from ortho_core.errors import UserError
from ortho_core.estep.assign import AssignedNoise
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.mstep.config import PRESERVE_SHARE
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.row_order import Order
from ortho_core.mstep.update import MStep
from ortho_core.noise.seeded import noise_seed


def matched_batches(
    step: MStep,
    assigned: AssignedNoise,
    *,
    epochs: int = 5,
    batch_size: int = 16,
    preserve_batch_size: int | None = None,
    seed: int = 0,
    center_noise: bool = True,
) -> Iterator[SftBatch]:
    """The batches of `epochs` passes over the images whose search did not fail, on the generator's device.

    A batch has `batch_size` rows, or all rows if there are fewer. The last incomplete batch of a pass is left out. Each batch
    has `preserve_batch_size` rows of fresh noise for the preserve terms (None: a quarter of its rows; without preserve
    terms always 0), with prompts drawn from all rows. `center_noise` subtracts the mean of all assigned noises from each of
    them, as `ortho train` does. The order depends only on `seed`.

    Raises UserError if every search failed, or if `preserve_batch_size` is odd with preserve_differences.
    """
    generator, config, sound = step.generator, step.config, assigned.sound
    if not len(sound):
        raise UserError("the search failed for every image (loss or gradient not finite): there is nothing to train on")
    B = min(batch_size, len(sound))
    # Each difference is between two rows of one prompt.
    size = 2 if config.preserve_differences else 1
    P = size * math.ceil(B / PRESERVE_SHARE / size) if preserve_batch_size is None else preserve_batch_size
    if not config.preserves or step.teacher is None:
        P = 0
    if P % size:
        raise UserError(f"preserve_batch_size {P} is odd: preserve_differences needs two rows of each prompt")
    order, prompts = Order(np.array([0, len(sound)]), B, seed), PromptCache(generator)
    noise = sound.noise - sound.noise.mean(0) if center_noise and len(sound) > 1 else sound.noise
    device = generator.device
    for epoch, number in ((epoch, number) for epoch in range(epochs) for number in range(order.updates)):
        rows = torch.from_numpy(order.share(epoch, number))
        condition = prompts([sound.prompts[row] for row in rows.tolist()])
        names = [("preserve", epoch, number, k) for k in range(P)]
        drawn = [noise_seed(seed, "preserve-prompt", epoch, number, k - k % size) % len(sound) for k in range(P)]
        yield SftBatch(
            noise[rows].to(device),
            condition,
            sound.target_latents[rows].to(device),
            sound.images[rows].to(device) if config.pixel_l1_weight else None,
            generator.base_noise([noise_seed(seed, *name) for name in names]) if P else None,
            prompts([sound.prompts[row] for row in drawn]) if P else None,
        )
