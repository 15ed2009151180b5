"""The M-step loss: fine-tune on given noise while a preserve term holds random-noise output to the starting model.

Axes: B images of the reconstruction term, P of the preserve term, C × H × W latents, 3 × Y × X images.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from ortho_core.generators.base import Condition, OneStepGenerator
from ortho_core.objectives import ReconstructionWeights, mean_absolute, mean_square


class SftConfig(ReconstructionWeights):
    """The weights of the M-step's four terms; a term of weight 0 costs nothing."""

    preserve_latent_weight: float = Field(0.1, ge=0, description="weight of mean((f_θ(ε',c) - f_0(ε',c))²) at fresh ε'")
    preserve_pixel_weight: float = Field(0.0, ge=0, description="weight of mean|D f_θ(ε',c) - D f_0(ε',c)|; decodes")

    @property
    def preserves(self) -> bool:
        return bool(self.preserve_latent_weight or self.preserve_pixel_weight)


@dataclass(frozen=True)
class SftBatch:
    """What one step trains on: the noise (matched, or random for direct SFT), the targets, and fresh noise ε'."""

    noise: Float[Tensor, "B C H W"]
    condition: Condition
    target_latents: Float[Tensor, "B C H W"]
    images: Float[Tensor, "B 3 Y X"] | None
    preserve_noise: Float[Tensor, "P C H W"]
    preserve_condition: Condition


def frozen_copy(module: nn.Module) -> nn.Module:
    """f_0: a copy that never trains, of the weights as they are now."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@contextmanager
def using(generator: OneStepGenerator, module: nn.Module) -> Iterator[None]:
    """Let `module` stand in for the generator's trainable network for a while."""
    usual = generator.trainable
    generator.trainable = module
    try:
        yield
    finally:
        generator.trainable = usual


def sft_loss(
    generator: OneStepGenerator, teacher: nn.Module | None, batch: SftBatch, config: SftConfig
) -> dict[str, Tensor]:
    """The M-step objective and its terms as scalars: `loss`, `latent`, `pixel`, `preserve_latent`, `preserve_pixel`.

    loss = w_lat·mean((f_θ(ε̂,c) - E(x))²) + w_pix·mean|D f_θ(ε̂,c) - x| + w_pl·mean((f_θ(ε',c) - f_0(ε',c))²)
    + w_pp·mean|D f_θ(ε',c) - D f_0(ε',c)|, with ε̂ = `batch.noise`. Both noises ride in one call of the network.
    """
    B = len(batch.noise)
    zero = batch.noise.new_zeros(())
    preserve = config.preserves and teacher is not None
    noise, condition = batch.noise, batch.condition
    if preserve:
        noise = torch.cat([noise, batch.preserve_noise])
        condition = Condition.cat([condition, batch.preserve_condition])
    latents = generator.denoise(noise, condition)
    matched, fresh = latents[:B], latents[B:]
    terms = {"latent": mean_square(matched, batch.target_latents).mean(), "pixel": zero}
    if config.pixel_l1_weight:
        if batch.images is None:
            raise ValueError("the pixel term needs the target images")
        terms["pixel"] = mean_absolute(generator.decode(matched), batch.images).mean()
    terms |= {"preserve_latent": zero, "preserve_pixel": zero}
    if preserve:
        assert teacher is not None
        with torch.no_grad(), using(generator, teacher):
            before = generator.denoise(batch.preserve_noise, batch.preserve_condition)
        terms["preserve_latent"] = mean_square(fresh, before).mean()
        if config.preserve_pixel_weight:
            with torch.no_grad():
                images_before = generator.decode(before)
            terms["preserve_pixel"] = mean_absolute(generator.decode(fresh), images_before).mean()
    terms["loss"] = (
        config.latent_loss_weight * terms["latent"]
        + config.pixel_l1_weight * terms["pixel"]
        + config.preserve_latent_weight * terms["preserve_latent"]
        + config.preserve_pixel_weight * terms["preserve_pixel"]
    )
    return terms
