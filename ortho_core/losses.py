"""The losses of both steps, one value per image, so that no image's result depends on its neighbours.

Axes: B images, C × H × W latents, 3 × Y × X images.
"""

from jaxtyping import Float
from torch import Tensor


def mean_square(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean((a - b)²) over all but the first axis."""
    return (a - b).square().flatten(1).mean(1)


def mean_absolute(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean|a - b| over all but the first axis."""
    return (a - b).abs().flatten(1).mean(1)
