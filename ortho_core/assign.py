"""The E-step: find, for each target image, the rotated noise that the generator already maps closest to it.

Axes: B images, C × H × W noise maps, m skew parameters, K steps. One call of the generator serves the whole batch; each
image has its own orthogonal matrix and its own optimiser state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ortho_core.generators.base import Condition, OneStepGenerator
from ortho_core.objectives import ReconstructionWeights, Terms, reconstruction
from ortho_core.optimizers import LBFGS, AdamW, Optimizer
from ortho_core.transform import block_dimension, pack_skew, rotate, skew_parameters


class AssignConfig(ReconstructionWeights):
    """What decides an assignment, besides the image, its prompt, its noise seed and the model."""

    patch_size: int = Field(2, ge=1, description="side p of the latent patches that one orthogonal matrix rotates")
    steps: int = Field(12, ge=1, description="evaluations (generator forward + backward) spent on each image")
    optimizer: Literal["lbfgs", "adamw"] = Field("lbfgs", description="lbfgs, or adamw as in the reference method")
    lr: float = Field(5e-4, gt=0, description="learning rate of adamw (lbfgs finds its own step size)")
    drift_reg_weight: float = Field(0.0, ge=0, description="weight of mean((Qε - ε)²)")


@dataclass(frozen=True)
class Assigned:
    """The result for B images; `skew` rebuilds the noise as `rotate(base, skew, p)`."""

    skew: Float[Tensor, "B m"]
    #: Total loss of the base noise, before any step.
    initial_loss: Float[Tensor, " B"]
    #: The terms at the kept iterate, the one with the lowest total.
    best: Terms
    #: Every step's total, (K, B), for the curves.
    history: Float[Tensor, "K B"]
    #: Images for which no step gave a finite loss; nothing else of theirs means anything.
    failed: Bool[Tensor, " B"]
    #: Generator evaluations spent on each image.
    evaluations: int


def initial_skew(seeds: list[int], d: int) -> Float[Tensor, "B m"]:
    """The reference's start: raw ~ 1e-4·N(0, 1) of shape (d, d), A = raw - rawᵀ, packed; seeded by the noise seed."""
    raws = []
    for seed in seeds:
        stream = np.random.Generator(np.random.Philox(key=[seed, 1]))
        raws.append(1e-4 * stream.standard_normal((d, d), dtype=np.float32))
    raw = torch.from_numpy(np.stack(raws))
    return pack_skew(raw - raw.mT)


def build_optimizer(config: AssignConfig, x: Float[Tensor, "B m"]) -> Optimizer:
    return AdamW(x, config.lr) if config.optimizer == "adamw" else LBFGS(x)


def assign_noise(
    generator: OneStepGenerator,
    seeds: list[int],
    condition: Condition,
    target_latents: Float[Tensor, "B C H W"],
    images: Float[Tensor, "B 3 Y X"] | None,
    config: AssignConfig,
    on_step: Callable[[int, Tensor, Terms], None] | None = None,
) -> Assigned:
    """Minimise `objectives.reconstruction` over the skew parameters of each image, `config.steps` evaluations each.

    `seeds` give the base noises; `on_step(k, skew, terms)` sees every evaluated point. Raises UserError if the patch size
    does not divide the latent.
    """
    d = block_dimension(generator.latent_shape, config.patch_size)
    base = generator.base_noise(seeds)
    x = initial_skew(seeds, d).to(base.device) if d > 1 else base.new_zeros(len(seeds), skew_parameters(d))
    optimizer = build_optimizer(config, x)
    best_x, best, history = x, None, []
    for k in range(config.steps):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            noise = rotate(base, x, config.patch_size)
            terms = reconstruction(
                generator, noise, base, condition, target_latents, images, config, config.drift_reg_weight
            )
            (grad,) = torch.autograd.grad(terms.total.sum(), x)
        x = x.detach()
        terms = Terms(terms.total.detach(), terms.latent.detach(), terms.pixel.detach(), terms.drift.detach())
        history.append(terms.total)
        if on_step is not None:
            on_step(k, x, terms)
        if best is None:
            best, best_x = terms, x
        else:
            # A comparison with NaN is false, so a broken evaluation never replaces the best one.
            won = (terms.total < best.total) | (terms.total.isfinite() & ~best.total.isfinite())
            best_x = torch.where(won[:, None], x, best_x)
            best = Terms(*(torch.where(won, new, old) for new, old in zip(_fields(terms), _fields(best), strict=True)))
        if k + 1 < config.steps:
            x = optimizer.propose(x, terms.total, grad)
    assert best is not None
    totals = torch.stack(history)
    return Assigned(best_x, totals[0], best, totals, ~best.total.isfinite(), config.steps)


def _fields(terms: Terms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return terms.total, terms.latent, terms.pixel, terms.drift
