"""Online matching: before each update, a search with the current weights finds new noise for the update's rows.

It uses the E-step's slots and optimiser: one slot for each row of a micro-batch, and the same number of evaluations for all.
So every worker calls the network equally often, as sharded weights require, and the host never waits.

Axes: B rows of this worker's share of an update, S of a micro-batch, C × H × W noise maps, m parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ortho_core.estep.config import AssignConfig, ReconstructionWeights
from ortho_core.estep.curvature import Sensitivity, measure
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.slots import Slots, empty_slots
from ortho_core.estep.space import noise_space
from ortho_core.framing.frame import Size
from ortho_core.generators.base import at_size
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.mstep.config import MatchingConfig
from ortho_core.mstep.loss import SftBatch
from ortho_core.records.plan import NoiseSettings

#: (C, H, W).
Shape = tuple[int, int, int]
#: Additional terms of a training log: the search's total at its first noise and at the noise that it found.
MATCH_TERMS = ("match_initial", "match_final")


def match_search(
    config: MatchingConfig, weights: ReconstructionWeights, noise: NoiseSettings | AssignConfig | None
) -> AssignConfig:
    """The search of the assignments' settings, with the training's loss weights, and without early stopping of rows."""
    where = noise.model_dump(include={"transform", "patch_size", "regions"}) if noise is not None else {}
    if config.match_patch_size is not None:
        where["patch_size"] = config.match_patch_size
    return AssignConfig(
        **where,
        latent_loss_weight=weights.latent_loss_weight,
        pixel_l1_weight=weights.pixel_l1_weight,
        steps=config.most_match_steps,
        patience=0,
    )


class _Precise(Reconstruction):
    """A reconstruction whose network computes in `half` precision, if given. Noise, rotations and losses stay in float32."""

    def __init__(self, generator: OneStepGenerator, weights: ReconstructionWeights, half: torch.dtype | None) -> None:
        super().__init__(generator, weights)
        self.half = half

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.generator.device.type, self.half, enabled=self.half is not None)

    def __call__(self, noise: Float[Tensor, "B C H W"], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self.autocast():
            return super().__call__(noise, inputs)


class OnlineMatching:
    """Searches with the generator's current weights, on this worker only. It computes no gradients of weights."""

    def __init__(
        self,
        generator: OneStepGenerator,
        parameters: Sequence[nn.Parameter],
        search: AssignConfig,
        parts: int = 1,
        *,
        half: torch.dtype | None = None,
    ) -> None:
        """`parameters` are the trained ones, `parts` the micro-batches of a share, `half` the dtype of autocast, if any.

        Raises UserError if patches or regions do not divide the latent.
        """
        self.generator, self.parameters, self.search, self.parts = generator, parameters, search, parts
        noise_space(search, generator.latent_shape)
        self.objective = _Precise(generator, search, half)
        #: The sensitivity by the shape of the noise, which differs if the images have several sizes.
        self.sensitivities: dict[Shape, Sensitivity] = {}
        #: The slots by the shape of a batch of noise.
        self._slots: dict[tuple[int, ...], Slots] = {}

    @torch.no_grad()
    def __call__(self, batch: SftBatch, steps: int, measures: bool = False) -> tuple[SftBatch, Float[Tensor, " 2"]]:
        """The batch at the noise that `steps` evaluations found, starting from its own; mean total of its rows before and after.

        Each row gets the noise of its best evaluation. `measures`: first measure the generator's sensitivity. A batch with
        weights is one part of a share; its totals are weighted sums.
        """
        parts = [batch] if batch.weights is not None else batch.split(self.parts)
        shape = _shape_of(batch.noise)
        if measures:
            self.forget()
        with self._searching():
            if self.search.measures and shape not in self.sensitivities:
                at = at_size(self.generator, self._size_of(batch.noise))
                with self.objective.autocast():
                    self.sensitivities[shape] = measure(at, self.search.sensitivity_rank, len(parts[0].noise))
            matches = [self._match(part, steps) for part in parts]
        noise, totals = (torch.cat(each) for each in zip(*matches, strict=True))
        total = totals.mean(0) if batch.weights is None else (totals * batch.weights[:, None]).sum(0)
        return replace(batch, noise=noise), total

    def forget(self) -> None:
        """Measure the sensitivity again when it is next needed, for each shape."""
        self.sensitivities.clear()
        self._slots.clear()

    def _size_of(self, noise: Tensor) -> Size:
        """The size of the images at this noise."""
        if _shape_of(noise) == tuple(self.generator.latent_shape):
            return self.generator.image_size
        factor = self.generator.image_size[0] // self.generator.latent_shape[1]
        return noise.shape[2] * factor, noise.shape[3] * factor

    def _match(self, part: SftBatch, steps: int) -> tuple[Float[Tensor, "S C H W"], Float[Tensor, "S 2"]]:
        base = part.noise
        inputs = self.objective.inputs(part.condition, part.target_latents, part.images)
        slots = self._slots.get(tuple(base.shape))
        if slots is None:
            space, sensitivity = noise_space(self.search, _shape_of(base)), self.sensitivities.get(_shape_of(base))
            slots = empty_slots(space, self.objective, self.search, sensitivity, base, inputs)
            if part.weights is None:  # parts of remainders have any number of rows: to keep slots for each would add up
                self._slots[tuple(base.shape)] = slots
        start = base.new_zeros(len(base), slots.space.parameters)
        slots.enter(torch.arange(len(base), device=base.device), base, start, inputs)
        for _ in range(steps):
            slots.step()
        totals = torch.stack([slots.history[0, :, 0], slots.best_total], 1)
        return slots.coordinates.noise(base, slots.best_x), totals

    @contextmanager
    def _searching(self) -> Iterator[None]:
        """A context without dropout and weight gradients, so that activations for weight gradients are not stored."""
        network = self.generator.trainable
        training = network.training
        network.eval()
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            network.train(training)

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run: the sensitivity of each shape, which was measured with earlier weights."""
        measured = [
            {"directions": one.directions.cpu(), "strength": one.strength.cpu(), "floor": one.floor}
            for one in self.sensitivities.values()
        ]
        return {"measured": measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.forget()
        device = self.generator.device
        for one in state["measured"]:
            sensitivity = Sensitivity(one["directions"].to(device), one["strength"].to(device), one["floor"])
            self.sensitivities[_shape_of(sensitivity.directions)] = sensitivity


def _shape_of(noise: Float[Tensor, "B C H W"]) -> Shape:
    _, C, H, W = noise.shape
    return C, H, W
