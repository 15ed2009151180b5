"""Best of K base noises: one forward per candidate chooses the base noise that a search starts from.

Axes: S rows of a batch, B images, K candidates of each image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ortho_core.estep.config import AssignConfig
from ortho_core.estep.objective import Objective
from ortho_core.estep.slots import loss_terms, stack_rows
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.seeded import noise_seed
from ortho_core.noise.spaces import NoiseSpace


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Seeds of an image's K candidates: its own seed, then seeds derived from it. A larger K only appends seeds."""
    return [seed, *(noise_seed(seed, "candidate", k) for k in range(1, count))]


@torch.no_grad()
def best_seeds(
    generator: OneStepGenerator,
    space: NoiseSpace,
    objective: Objective,
    config: AssignConfig,
    seeds: Sequence[int],
    inputs: Sequence[Mapping[str, Tensor]],
    batch_size: int,
) -> list[int]:
    """The seed of the candidate with the lowest total loss, for each of B images, by K forwards without a gradient.

    `inputs` are each image's inputs of the objective, without a batch axis. A total that is not finite is never chosen; among
    equal totals the first wins. Every batch is filled up to S = `batch_size` rows, so a row's total does not depend on the
    other rows.
    """
    drawn = [candidate_seeds(seed, config.candidates) for seed in seeds]
    rows = [
        (seed, image_inputs) for image_seeds, image_inputs in zip(drawn, inputs, strict=True) for seed in image_seeds
    ]
    totals = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        filled = part + part[-1:] * (batch_size - len(part))
        base = generator.base_noise([seed for seed, _ in filled])
        terms = loss_terms(space, objective, config, base, base, stack_rows([each for _, each in filled]))
        totals.append(terms["total"][: len(part)])
    table = torch.cat(totals).reshape(len(drawn), config.candidates).cpu().numpy()
    lowest = np.where(np.isfinite(table), table, np.inf).argmin(1)
    return [image_seeds[k] for image_seeds, k in zip(drawn, lowest.tolist(), strict=True)]
