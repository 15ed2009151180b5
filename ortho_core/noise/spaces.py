"""The spaces that the E-step searches: the rotations of an image's base noise, or all noise maps under a Gaussian prior.

Axes: B images, C × H × W noise maps, m parameters per image, k directions, d block dimension, N patches.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.noise.prior import gaussian_prior
from ortho_core.noise.rotation import (
    block_dimension,
    check_regions,
    cut_regions,
    pack_skew,
    patchify,
    rotate,
    skew_parameters,
)


@runtime_checkable
class NoiseSpace(Protocol):
    """A family of noise maps around each base noise ε, with m unconstrained parameters per image."""

    @property
    def parameters(self) -> int:
        """m."""
        ...

    @property
    def reach(self) -> float:
        """The norm of parameters that moves the noise by about its own norm; no step should be longer."""
        ...

    @property
    def first_step(self) -> float:
        """A norm of the first step that works well for most images."""
        ...

    def start(self, seeds: Sequence[int]) -> Float[Tensor, "B m"]:
        """The parameters of the search's start, at or close to the base noise; row b depends only on seeds[b]."""
        ...

    def noise(self, base: Float[Tensor, "B C H W"], x: Float[Tensor, "B m"]) -> Float[Tensor, "B C H W"]:
        """The noise map of the parameters; differentiable."""
        ...

    def pull_back(self, base: Float[Tensor, "B C H W"], directions: Float[Tensor, "k C H W"]) -> Tensor:
        """(B, m, k): the gradient of ⟨direction, noise⟩ in x, at the base noise."""
        ...

    def prior(self, noise: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"] | None:
        """A penalty for maps that are not Gaussian, or None if the space needs no such penalty."""
        ...


class Rotations:
    """Qε, with one Q for each cell of a g × g grid: m = g²·d(d-1)/2 skew parameters.

    Raises UserError if patches or cells do not divide the map.
    """

    def __init__(self, latent_shape: tuple[int, int, int], patch_size: int, regions: int = 1) -> None:
        self.d = block_dimension(latent_shape, patch_size)
        check_regions(latent_shape, patch_size, regions)
        self.patch_size, self.regions = patch_size, regions

    @property
    def parameters(self) -> int:
        return self.regions**2 * skew_parameters(self.d)

    @property
    def reach(self) -> float:
        # Q(A) moves ε by -2Aε: a packed norm s in one of g² cells moves a Gaussian by √8·s/√(d·g²) of its norm.
        return float((self.d * self.regions**2 / 8) ** 0.5)

    @property
    def first_step(self) -> float:
        # In radians. The same for every patch size: with larger patches the noise is freer and has to move less.
        return 0.55

    def start(self, seeds: Sequence[int]) -> Float[Tensor, "B m"]:
        """The start of the reference method: raw ~ 1e-4·N(0, 1) of shape (d, d) for each matrix, A = raw - rawᵀ, packed."""
        d, cells = self.d, self.regions**2
        raws = []
        for seed in seeds:
            stream = np.random.Generator(np.random.Philox(key=[seed, 1]))
            raws.append(1e-4 * stream.standard_normal((cells, d, d), dtype=np.float32))
        raw = torch.from_numpy(np.concatenate(raws))
        return pack_skew(raw - raw.mT).reshape(len(seeds), -1)

    def noise(self, base: Float[Tensor, "B C H W"], x: Float[Tensor, "B m"]) -> Float[Tensor, "B C H W"]:
        return rotate(base, x, self.patch_size, self.regions)

    def pull_back(self, base: Float[Tensor, "B C H W"], directions: Float[Tensor, "k C H W"]) -> Tensor:
        # Q(A)ε = ε - 2Aε + O(A²), so the gradient of ⟨u, Qε⟩ in a_ij is -2·Σ_n (u_ni ε_nj - u_nj ε_ni).
        cells, k = self.regions**2, len(directions)
        e, u = (patchify(cut_regions(maps, self.regions), self.patch_size) for maps in (base, directions))
        e, u = e.reshape(len(base), cells, -1, self.d), u.reshape(k, cells, -1, self.d)
        outer = -2 * torch.einsum("kcni,bcnj->bkcij", u, e)
        packed = pack_skew((outer - outer.mT).flatten(0, 2))
        return packed.reshape(len(base), k, -1).mT.contiguous()

    def prior(self, noise: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"] | None:
        return None


class Free:
    """Any noise map, as the base noise plus m = C·H·W numbers; a Gaussian prior keeps it close to N(0, I)."""

    def __init__(self, latent_shape: tuple[int, int, int]) -> None:
        self.latent_shape = latent_shape

    @property
    def parameters(self) -> int:
        C, H, W = self.latent_shape
        return C * H * W

    @property
    def reach(self) -> float:
        return float(self.parameters**0.5)

    @property
    def first_step(self) -> float:
        return 0.2 * self.reach

    def start(self, seeds: Sequence[int]) -> Float[Tensor, "B m"]:
        return torch.zeros(len(seeds), self.parameters)

    def noise(self, base: Float[Tensor, "B C H W"], x: Float[Tensor, "B m"]) -> Float[Tensor, "B C H W"]:
        return base + x.view_as(base)

    def pull_back(self, base: Float[Tensor, "B C H W"], directions: Float[Tensor, "k C H W"]) -> Tensor:
        return directions.flatten(1).mT.expand(len(base), -1, -1).contiguous()

    def prior(self, noise: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"] | None:
        return gaussian_prior(noise)
