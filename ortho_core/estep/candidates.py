"""Best of K base noises: where a search starts from when a forward each may choose among several.

Axes: S rows of a batch, B images, K candidates of each.
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
    """Seeds of an image's K candidates, which its own seed decides: itself, then its derivatives. More begin with the same."""
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
    """For each of B images the candidate whose base noise has the lowest total loss, by K forwards without a gradient.

    `inputs` are each image's rows of the objective's inputs, without a batch axis. A total that is not finite loses; of equal
    ones the first wins. All batches have S = `batch_size` rows, filled up, so that no row's total hangs on the rest.
    """
    drawn = [candidate_seeds(seed, config.candidates) for seed in seeds]
    rows = [(seed, own) for several, own in zip(drawn, inputs, strict=True) for seed in several]
    totals = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        filled = part + part[-1:] * (batch_size - len(part))
        base = generator.base_noise([seed for seed, _ in filled])
        terms = loss_terms(space, objective, config, base, base, stack_rows([own for _, own in filled]))
        totals.append(terms["total"][: len(part)])
    found = torch.cat(totals).reshape(len(drawn), config.candidates).cpu().numpy()
    lowest = np.where(np.isfinite(found), found, np.inf).argmin(1)
    return [several[k] for several, k in zip(drawn, lowest.tolist(), strict=True)]
