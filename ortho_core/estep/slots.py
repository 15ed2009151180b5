"""The state of the images under search: one slot each, on the generator's device. All slots step together, without host reads.

Axes: S slots, C × H × W noise maps, m parameters, n coordinates, K evaluations at most, T terms of the loss.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.curvature import CurvatureModel, Sensitivity
from ortho_core.estep.objective import Objective
from ortho_core.estep.optimizers import LBFGS, AdamW, Optimizer, identity
from ortho_core.losses import mean_square
from ortho_core.noise.coordinates import Coordinates, Parameters, coordinates
from ortho_core.noise.spaces import NoiseSpace


class Slots:
    """The state of S images. An empty slot is computed like any other, so that shapes and kernels never change."""

    def __init__(
        self,
        space: NoiseSpace,
        coordinates: Coordinates,
        objective: Objective,
        optimizer: Optimizer,
        metric: CurvatureModel | None,
        config: SearchConfig,
        base: Float[Tensor, "S C H W"],
        inputs: Mapping[str, Tensor],
    ) -> None:
        """`base` and `inputs` define the shapes, and fill the slots that are still empty."""
        S, K = len(base), config.steps
        self.space, self.coordinates, self.objective, self.config = space, coordinates, objective, config
        self.optimizer, self.metric = optimizer, metric
        self.names = ("total", *objective.parts, "drift", "prior")
        self.base = base.clone()
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        #: Coordinates, as in `best_x`.
        self.x = base.new_zeros(S, coordinates.count)
        self.best_x = torch.zeros_like(self.x)
        self.best_total = base.new_full((S,), float("inf"))
        #: Evaluations spent on the image in each slot.
        self.count = torch.zeros(S, dtype=torch.long, device=base.device)
        self.active = torch.zeros(S, dtype=torch.bool, device=base.device)
        self.failed = torch.zeros_like(self.active)
        self.history = base.new_zeros(len(self.names), S, K)

    def enter(
        self,
        slots: Int[Tensor, " k"],
        base: Float[Tensor, "k C H W"],
        parameters: Float[Tensor, "k m"],
        inputs: Mapping[str, Tensor],
    ) -> None:
        """Put k images into `slots` and reset the slots' state; the search starts at `parameters`."""
        self.base[slots] = base
        for name, tensor in inputs.items():
            self.inputs[name][slots] = tensor
        one_by_one = [(slots[i : i + 1], base[i : i + 1], parameters[i : i + 1]) for i in range(len(slots))]
        # One by one: a matrix product rounds differently for another number of images, so results would depend on the group.
        x = torch.cat([self.coordinates.enter(*image) for image in one_by_one])
        self.x[slots] = x
        self.best_x[slots] = x
        self.best_total[slots] = float("inf")
        self.count[slots] = 0
        self.active[slots] = True
        self.failed[slots] = False
        self.optimizer.reset(slots)
        if self.metric is not None:
            for slot, image_base, _ in one_by_one:
                self.metric.reset(slot, image_base)

    def evaluate(self, x: Float[Tensor, "S n"]) -> tuple[dict[str, Tensor], Float[Tensor, "S n"]]:
        """The terms of every slot at x and the gradient of each slot's total. A term of weight 0 is zero."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            noise = self.coordinates.noise(self.base, x)
            terms = loss_terms(self.space, self.objective, self.config, self.base, noise, self.inputs)
            (grad,) = torch.autograd.grad(terms["total"].sum(), x)
        return {name: term.detach() for name, term in terms.items()}, grad

    @torch.no_grad()
    def step(self) -> Bool[Tensor, " S"]:
        """Evaluate every slot once. Returns the flags of the images that are now done; later steps do not change these."""
        terms, grad = self.evaluate(self.x)
        total, K = terms["total"], self.config.steps
        usable = total.isfinite() & grad.isfinite().all(1)
        # A comparison with NaN is false, so an evaluation that is not finite never replaces the best one.
        better = self.active & usable & (total < self.best_total)
        self.best_x = torch.where(better[:, None], self.x, self.best_x)
        self.best_total = torch.where(better, total, self.best_total)
        here = (torch.arange(K, device=total.device) == self.count[:, None]) & self.active[:, None]
        stacked = torch.stack([terms[name] for name in self.names])
        self.history = torch.where(here, stacked[:, :, None], self.history)
        broken = self.active & ~usable
        done = broken | (self.active & ((self.count + 1 >= K) | self._stalled()))
        self.failed = self.failed | broken
        self.count = self.count + self.active
        self.active = self.active & ~done
        proposed = self.optimizer.propose(self.x, total, grad)
        self.x = torch.where(self.active[:, None], proposed, self.x)
        return done

    def _stalled(self) -> Bool[Tensor, " S"]:
        """Whether the best total fell by no more than `stop_tolerance` of itself in the last `patience` evaluations."""
        patience = self.config.patience
        if not patience or self.config.optimizer == "adamw":  # the reference takes all of its steps
            return torch.zeros_like(self.active)
        lowest = self.history[0].cummin(1).values
        before = lowest.gather(1, (self.count - patience).clamp_min(0)[:, None]).squeeze(1)
        gain = before - self.best_total
        return (self.count >= patience) & (gain <= self.config.stop_tolerance * self.best_total.abs())

    def leave(self, slots: Int[Tensor, " k"]) -> dict[str, Tensor]:
        """Copies of the results of the images in `slots`."""
        one_by_one = [slots[i : i + 1] for i in range(len(slots))]  # as for `enter`
        return {
            "parameters": torch.cat([self.coordinates.parameters(slot, self.best_x[slot]) for slot in one_by_one]),
            "count": self.count[slots],
            "failed": self.failed[slots],
            "history": self.history[:, slots].transpose(0, 1).contiguous(),
        }


def empty_slots(
    space: NoiseSpace,
    objective: Objective,
    config: SearchConfig,
    sensitivity: Sensitivity | None,
    base: Float[Tensor, "S C H W"],
    inputs: Mapping[str, Tensor],
) -> Slots:
    """S empty slots with the optimiser of the configuration. L-BFGS starts from the sensitivity, if there is one.

    `base` and `inputs` define the shapes, as for `Slots`.
    """
    if config.optimizer == "adamw":  # the reference, which moves all parameters
        x = base.new_zeros(len(base), space.parameters)
        return Slots(space, Parameters(space), objective, AdamW(x, config.lr), None, config, base, inputs)
    where = coordinates(space, base)
    x = base.new_zeros(len(base), where.count)
    metric = CurvatureModel(sensitivity, where, len(base)) if sensitivity is not None else None
    optimizer = LBFGS(x, metric or identity, first_step=where.first_step, max_step=0.8 * where.reach)
    return Slots(space, where, objective, optimizer, metric, config, base, inputs)


def loss_terms(
    space: NoiseSpace,
    objective: Objective,
    config: SearchConfig,
    base: Float[Tensor, "S C H W"],
    noise: Float[Tensor, "S C H W"],
    inputs: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """`total`, which is minimised, and the terms that it consists of, each (S,). A term of weight 0 is zero."""
    terms = objective(noise, inputs)
    total = terms["total"]
    terms |= {"drift": torch.zeros_like(total), "prior": torch.zeros_like(total)}
    if config.drift_reg_weight:
        terms["drift"] = mean_square(noise, base)
        total = total + config.drift_reg_weight * terms["drift"]
    prior = space.prior(noise) if config.prior_weight else None
    if prior is not None:
        terms["prior"] = prior
        total = total + config.prior_weight * prior
    terms["total"] = total
    return terms


def stack_rows(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of the inputs of several images."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
