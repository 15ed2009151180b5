"""The losses of both steps, one value per image: an image's result does not depend on the other images of its batch.

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
