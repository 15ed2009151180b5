"""The losses of both steps, one value per image, so that no image's result depends on its neighbours.

Axes: B images, C × H × W latents, 3 × Y × X images.
"""

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ortho_core.marks import decides


class ReconstructionWeights(BaseModel):
    """Weights of the reconstruction terms; a term of weight 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_loss_weight: float = decides(1.0, ge=0, description="weight of mean((f(Qε,c) - E(x))²), in latent units")
    pixel_l1_weight: float = decides(0.0, ge=0, description="weight of mean|D(f(Qε,c)) - x|, images in [0, 1]; decodes")


def mean_square(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean((a - b)²) over all but the first axis."""
    return (a - b).square().flatten(1).mean(1)


def mean_absolute(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean|a - b| over all but the first axis."""
    return (a - b).abs().flatten(1).mean(1)
