"""The memory of a search's slots, for a frozen network and for a network that trains at the same time."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.curvature import Sensitivity
from ortho_core.estep.objective import Objective
from ortho_core.estep.slots import empty_slots, stack_rows
from ortho_core.estep.space import noise_space
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.memory.live import Linear, LiveBytes
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.matching import OnlineMatching
from ortho_core.mstep.update import MStep


def count_slots(
    live: LiveBytes,
    generator: OneStepGenerator,
    objective: Objective,
    config: SearchConfig,
    count: int,
    inputs: Mapping[str, Tensor],
) -> tuple[int, int]:
    """Bytes of `count` slots between evaluations, and the additional peak of entering images and of two evaluations."""
    space = noise_space(config, generator.latent_shape)
    sensitivity = blank_sensitivity(generator, config)
    base = torch.zeros(count, *generator.latent_shape, device=generator.device)
    before = live.live
    slots = empty_slots(space, objective, config, sensitivity, base, inputs)
    kept = live.live - before

    def enter() -> None:
        rows = [{name: tensor[i] for name, tensor in inputs.items()} for i in range(count)]
        index, starts = torch.arange(count, device=base.device), base.new_zeros(count, space.parameters)
        slots.enter(index, base.clone(), starts, stack_rows(rows))

    entering = live.peak_of(enter)

    def evaluate() -> None:
        slots.step()
        slots.step()

    return kept, max(entering, live.peak_of(evaluate))


def count_matching(
    live: LiveBytes, step: MStep, batches: tuple[SftBatch, SftBatch], search: AssignConfig, half: torch.dtype | None
) -> tuple[Linear, Linear]:
    """From two batches: bytes per row that stay between updates, and the additional bytes of two evaluations.

    The search uses the float32 weights that train, so autocast casts them to `half` again in every evaluation.
    """
    rows = len(batches[0].noise), len(batches[1].noise)
    kept, added = [], []
    for batch in batches:
        matching = OnlineMatching(step.generator, step.parameters, search, half=half)
        if (sensitivity := blank_sensitivity(step.generator, search)) is not None:
            matching.sensitivities[step.generator.latent_shape] = sensitivity
        before = live.live
        peak = live.peak_of(lambda matching=matching, batch=batch: matching(batch, 2))  # type: ignore[misc]
        kept.append(live.live - before)
        added.append(peak - kept[-1])
        del matching
    return Linear.through(rows, (kept[0], kept[1])), Linear.through(rows, (added[0], added[1]))


def blank_sensitivity(generator: OneStepGenerator, config: SearchConfig) -> Sensitivity | None:
    """Zeros in place of a measured sensitivity: measuring needs numbers."""
    if not config.measures:
        return None
    k, device = config.sensitivity_rank, generator.device
    directions = torch.zeros(k, *generator.latent_shape, device=device)
    return Sensitivity(directions, torch.ones(k, device=device), 1.0)
