"""Matching while training: before an update its rows' noise is searched for anew, with the weights of that moment.

The E-step's slots and optimiser do it, one slot for each row of a micro-batch, all for the same number of evaluations: every
worker calls the network equally often, which sharded weights need, and the host never waits.

Axes: B rows of this worker's share of an update, S of a micro-batch, C × H × W noise maps, m parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, BeforeValidator, ConfigDict
from torch import Tensor, nn

from ortho_core.estep.config import AssignConfig
from ortho_core.estep.curvature import MEASURED_WITH, Sensitivity, measure
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.slots import Slots, empty_slots
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.losses import ReconstructionWeights
from ortho_core.marks import decides
from ortho_core.mstep.loss import SftBatch
from ortho_core.records.plan import NoiseSettings

#: Terms of a training log besides those of the loss: the search's total at the noise it began with, and at what it found.
MATCH_TERMS = ("match_initial", "match_final")


def schedule(given: object) -> object:
    """`6`, or `8:2` from the first update to the last."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        return given
    first, colon, last = str(given).partition(":")
    ends = [first, last] if colon else [first]
    if not all(end.isascii() and end.isdecimal() and int(end) for end in ends):
        raise ValueError("a number of evaluations, or FIRST:LAST, none of them 0")
    return ":".join(str(int(end)) for end in ends)


class MatchingConfig(BaseModel):
    """How noise is matched while training; for `--noise online`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match_steps: Annotated[str, BeforeValidator(schedule)] = decides(
        "6",
        description="online: evaluations (generator forward + backward) of each row before each update; FIRST:LAST goes evenly "
        "from one to the other over the updates",
    )
    match_refresh: float = decides(
        1.0,
        ge=0,
        le=1,
        description="online: r, the fresh part of the variance of the noise that a search starts from, "
        "√(1-r)·kept + √r·fresh (1: fresh noise alone)",
    )
    match_keep: Literal["assigned", "latest"] = decides(
        "assigned",
        description="online: what is kept of a row where it is not all fresh: its assigned noise, or what was found the last "
        "time it was trained on",
    )
    match_patch_size: int | None = decides(
        None, ge=1, description="online: side of the patches that are rotated (none: as the assignments have it)"
    )
    match_sensitivity_every: int = decides(
        0,
        ge=0,
        description="online: updates after which it is measured again what the generator answers to (0: at the start alone)",
    )
    match_dtype: Literal["float32", "bfloat16"] = decides(
        "float32", description="online: what the network computes in while noise is searched for (bfloat16: autocast)"
    )

    @property
    def most_match_steps(self) -> int:
        """Evaluations of a row before the update that has most of them."""
        return max(map(int, self.match_steps.split(":")))

    def match_steps_at(self, update: int, updates: int) -> int:
        """Evaluations of a row before one of so many updates, counted from 0."""
        first, _, last = self.match_steps.partition(":")
        a, b = int(first), int(last or first)
        return round(a + (b - a) * update / max(1, updates - 1))

    def match_measures_at(self, update: int) -> bool:
        """Whether the sensitivity is measured before this update."""
        every = self.match_sensitivity_every
        return update % every == 0 if every else update == 0

    def match_evaluations(self, updates: int, batch_size: int) -> int:
        """Evaluations of so many updates, those of the measurements among them, which every worker makes for itself."""
        steps = sum(self.match_steps_at(k, updates) for k in range(updates))
        measured = -(-updates // self.match_sensitivity_every) if self.match_sensitivity_every else 1
        return batch_size * steps + MEASURED_WITH * measured

    def match_search(self, weights: ReconstructionWeights, noise: NoiseSettings | AssignConfig | None) -> AssignConfig:
        """Where assignments of these settings looked, for the terms that the training lowers, no row leaving early."""
        where = noise.model_dump(include={"transform", "patch_size", "regions"}) if noise is not None else {}
        if self.match_patch_size is not None:
            where["patch_size"] = self.match_patch_size
        return AssignConfig(
            **where,
            latent_loss_weight=weights.latent_loss_weight,
            pixel_l1_weight=weights.pixel_l1_weight,
            steps=self.most_match_steps,
            patience=0,
        )


class _Precise(Reconstruction):
    """A reconstruction whose network computes in bfloat16 where told to; noise, rotations and losses stay in float32."""

    def __init__(self, generator: OneStepGenerator, weights: ReconstructionWeights, bf16: bool) -> None:
        super().__init__(generator, weights)
        self.bf16 = bf16

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.generator.device.type, torch.bfloat16, enabled=self.bf16)

    def __call__(self, noise: Float[Tensor, "B C H W"], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self.autocast():
            return super().__call__(noise, inputs)


class OnlineMatching:
    """Searches with the generator's network as it is at the moment, on this worker alone: no gradient of a weight is made."""

    def __init__(
        self,
        generator: OneStepGenerator,
        parameters: Sequence[nn.Parameter],
        search: AssignConfig,
        parts: int = 1,
        *,
        bf16: bool = False,
    ) -> None:
        """`parameters` are those that train; `parts` the micro-batches of a share.

        Raises UserError if patches or regions do not divide the latent.
        """
        self.generator, self.parameters, self.search, self.parts = generator, parameters, search, parts
        self.space = search.space(generator.latent_shape)
        self.objective = _Precise(generator, search, bf16)
        self.sensitivity: Sensitivity | None = None
        self._slots: Slots | None = None

    @torch.no_grad()
    def __call__(self, batch: SftBatch, steps: int, measures: bool = False) -> tuple[SftBatch, Float[Tensor, " 2"]]:
        """The batch at the noise found within `steps` evaluations from its own; mean total of its rows before and after.

        Each row is left at its best evaluation. `measures`: first measure what the generator answers to.
        """
        with self._searching():
            if self.search.measures and (measures or self.sensitivity is None):
                with self.objective.autocast():
                    self.sensitivity = measure(
                        self.generator, self.search.sensitivity_rank, len(batch.noise) // self.parts
                    )
                self._slots = None
            found = [self._match(part, steps) for part in batch.split(self.parts)]
        noise, totals = (torch.cat(each) for each in zip(*found, strict=True))
        return replace(batch, noise=noise), totals.mean(0)

    def _match(self, part: SftBatch, steps: int) -> tuple[Float[Tensor, "S C H W"], Float[Tensor, "S 2"]]:
        base = part.noise
        inputs = self.objective.inputs(part.condition, part.target_latents, part.images)
        if self._slots is None:
            self._slots = empty_slots(self.space, self.objective, self.search, self.sensitivity, base, inputs)
        slots = self._slots
        slots.enter(torch.arange(len(base), device=base.device), base, torch.zeros_like(slots.x), inputs)
        for _ in range(steps):
            slots.step()
        totals = torch.stack([slots.history[0, :, 0], slots.best_total], 1)
        return self.space.noise(base, slots.best_x), totals

    @contextmanager
    def _searching(self) -> Iterator[None]:
        """Inside, the network has no dropout, and its weights ask for no gradient: what that would need is not kept."""
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
        """What a resumed run goes on with: the sensitivity, which was measured with weights that are gone."""
        found = self.sensitivity
        if found is None:
            return {}
        return {"directions": found.directions.cpu(), "strength": found.strength.cpu(), "floor": found.floor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._slots = None
        self.sensitivity = None
        if state:
            device = self.generator.device
            self.sensitivity = Sensitivity(state["directions"].to(device), state["strength"].to(device), state["floor"])
