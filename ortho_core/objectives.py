"""The losses of both steps, one value per image, so that no image's result depends on its neighbours.

Axes: B images, C × H × W latents, 3 × Y × X images.
"""

from dataclasses import dataclass

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ortho_core.generators.base import Condition, OneStepGenerator


class ReconstructionWeights(BaseModel):
    """Weights of the reconstruction terms; a term of weight 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_loss_weight: float = Field(1.0, ge=0, description="weight of mean((f(Qε,c) - E(x))²), in latent units")
    pixel_l1_weight: float = Field(0.0, ge=0, description="weight of mean|D(f(Qε,c)) - x|, images in [0, 1]; decodes")


def mean_square(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean((a - b)²) over all but the first axis."""
    return (a - b).square().flatten(1).mean(1)


def mean_absolute(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean|a - b| over all but the first axis."""
    return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class Terms:
    """The terms of one evaluation and their weighted total, each of shape (B,). A term of weight 0 is zero."""

    total: Float[Tensor, " B"]
    latent: Float[Tensor, " B"]
    pixel: Float[Tensor, " B"]
    drift: Float[Tensor, " B"]


def reconstruction(
    generator: OneStepGenerator,
    noise: Float[Tensor, "B C H W"],
    base: Float[Tensor, "B C H W"],
    condition: Condition,
    target_latents: Float[Tensor, "B C H W"],
    images: Float[Tensor, "B 3 Y X"] | None,
    weights: ReconstructionWeights,
    drift_weight: float,
) -> Terms:
    """w_lat·mean((f(Qε,c) - E(x))²) + w_pix·mean|D(f(Qε,c)) - x| + w_drift·mean((Qε - ε)²), per image.

    `noise` is Qε, `base` is ε; `images` (in [0, 1]) are needed only when the pixel weight is not 0.
    """
    latents = generator.denoise(noise, condition)
    latent = mean_square(latents, target_latents)
    pixel = latent.new_zeros(latent.shape)
    if weights.pixel_l1_weight:
        if images is None:
            raise ValueError("the pixel term needs the target images")
        pixel = mean_absolute(generator.decode(latents), images)
    drift = mean_square(noise, base) if drift_weight else latent.new_zeros(latent.shape)
    total = weights.latent_loss_weight * latent + weights.pixel_l1_weight * pixel + drift_weight * drift
    return Terms(total, latent, pixel, drift)
