"""A differentiable measure of how far a noise map is from N(0, I), by its norm and its whiteness.

Axes: B maps, C × H × W noise, n = C·H·W numbers in a map.
"""

from jaxtyping import Float
from torch import Tensor

#: Spatial shifts whose autocorrelation is penalised; only a half-plane, because a shift and its opposite give the same value.
WHITENESS_LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))


def lagged_product(noise: Float[Tensor, "B C H W"], dy: int, dx: int) -> Float[Tensor, "B C h w"]:
    """Pixel (y, x) times pixel (y + dy, x + dx) of the same channel, where both are inside the map; dy ≥ 0."""
    H, W = noise.shape[2:]
    ahead = noise[:, :, dy:, max(dx, 0) : W + min(dx, 0)]
    return ahead * noise[:, :, : H - dy, max(-dx, 0) : W - max(dx, 0)]


def norm_term(noise: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The negative log-likelihood of ‖ε‖ under chi(n), per number and above its minimum: 0 at ‖ε‖² = n - 1.

    This is (‖ε‖²/2 - (n-1)·log‖ε‖)/n up to a constant, the norm regulariser of ReNO (Eyring et al. 2024, eq. 4).
    """
    n = noise[0].numel()
    square = noise.square().flatten(1).sum(1)
    ratio = square / (n - 1)
    return (n - 1) * (ratio - 1 - ratio.log()) / (2 * n)


def whiteness_term(noise: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Mean square correlation over `WHITENESS_LAGS` within a channel and between channels; about 1/(H·W) for white noise."""
    B, C, H, W = noise.shape
    power = noise.square().mean((2, 3)).clamp_min(1e-12)
    squares = []
    for dy, dx in WHITENESS_LAGS:
        if dy < H and abs(dx) < W:
            squares.append((lagged_product(noise, dy, dx).mean((2, 3)) / power).square().mean(1))
    if C > 1:
        flat = noise.flatten(2)
        cross = flat @ flat.mT / flat.shape[2] / (power[:, :, None] * power[:, None]).sqrt()
        squares.append((cross.square().sum((1, 2)) - cross.diagonal(dim1=1, dim2=2).square().sum(1)) / (C * (C - 1)))
    if not squares:
        return noise.new_zeros(B)
    return sum(squares[1:], squares[0]) / len(squares)


def gaussian_prior(noise: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """`norm_term` + `whiteness_term`, one number per map."""
    return norm_term(noise) + whiteness_term(noise)
