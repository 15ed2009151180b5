"""Coordinates of a rotation that acts on few patches: far fewer than the parameters of the rotation.

Let E be an orthonormal basis of the span of N patches in d dimensions. To first order, every skew A moves these patches as
U Eᵀ - E Uᵀ does for some U of d × N. So the search starts at A₀ and varies U in A = A₀ + U Eᵀ - E Uᵀ: d·N coordinates instead of
d(d-1)/2. Qε then needs a linear system of 2N unknowns instead of d (Woodbury 1950). The result is stored as the skew parameters
of A, like any other rotation.

Axes: S slots, B images that enter or leave, C × H × W noise maps, g² cells of N patches each, n coordinates and m skew parameters
of all cells, one cell after another.
"""

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ortho_core.noise.rotation import cut_regions, join_regions, pack_skew, patchify, unpack_skew, unpatchify
from ortho_core.noise.spaces import Rotations


class FewPatches:
    """The coordinates U of the images in S slots, n = g²·d·N per image. U = 0 is the start of an image's search."""

    def __init__(self, space: Rotations, like: Float[Tensor, "S C H W"]) -> None:
        """`like` defines the shape of all slots' noise, the dtype and the device."""
        S, d, cells = len(like), space.d, space.regions**2
        self.space, self.cells = space, cells
        self.shape = (like.shape[1], like.shape[2] // space.regions, like.shape[3] // space.regions)
        self.patches = like[0].numel() // (cells * d)
        self.start = like.new_zeros(S, space.parameters)
        #: (I + A₀)⁻¹, E, (I + A₀)⁻¹E and the patches' coordinates in E.
        self.inverse = like.new_zeros(S * cells, d, d)
        self.basis, self.turned = (like.new_zeros(S * cells, d, self.patches) for _ in range(2))
        self.inside = like.new_zeros(S * cells, self.patches, self.patches)

    @staticmethod
    def fits(space: Rotations, latent_shape: tuple[int, ...]) -> bool:
        """Whether 2N < d: then there are fewer coordinates than parameters."""
        return 2 * prod(latent_shape) < space.regions**2 * space.d**2

    @property
    def count(self) -> int:
        return self.cells * self.space.d * self.patches

    @property
    def reach(self) -> float:
        # Q(A) moves ε by -2Aε: U of norm s in one of g² cells moves N Gaussian patches by 2s/√(N·g²) of their norm.
        return float((self.patches * self.cells) ** 0.5 / 2)

    @property
    def first_step(self) -> float:
        return self.space.first_step

    def _cut(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "Bgg d N"]:
        return patchify(cut_regions(maps, self.space.regions), self.space.patch_size).mT

    def enter(
        self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"], parameters: Float[Tensor, "B m"]
    ) -> Tensor:
        """Put images into `slots`, with searches that start at the skew parameters A₀. Returns their coordinates: zeros."""
        d, cells = self.space.d, self.cells
        patches = self._cut(base)
        # With 2N < d, Gaussian patches are far from linearly dependent, so Cholesky's factor is as accurate as that of QR.
        factor = torch.linalg.cholesky_ex(patches.mT @ patches, check_errors=False).L
        basis = torch.linalg.solve_triangular(factor.mT, patches, upper=True, left=False)
        identity = torch.eye(d, dtype=base.dtype, device=base.device)
        A = unpack_skew(parameters.reshape(len(base) * cells, -1), d)
        inverse = torch.linalg.inv_ex(identity + A, check_errors=False).inverse
        at = self._cells_of(slots)
        self.start[slots] = parameters
        self.inverse[at], self.basis[at] = inverse, basis
        self.turned[at], self.inside[at] = inverse @ basis, factor.mT
        return base.new_zeros(len(base), self.count)

    def noise(self, base: Float[Tensor, "S C H W"], coordinates: Float[Tensor, "S n"]) -> Float[Tensor, "S C H W"]:
        # With W = [U, -E] and Z = [E, U]: A = A₀ + W Zᵀ, and Q(A)ε = 2(I + A)⁻¹ε - ε.
        N, E, turned = self.patches, self.basis, self.turned
        U = coordinates.reshape(-1, self.space.d, N)
        Z = torch.cat([E, U], 2)
        solved = torch.cat([self.inverse @ U, -turned], 2)
        inner = torch.eye(2 * N, dtype=U.dtype, device=U.device) + Z.mT @ solved
        right = Z.mT @ turned @ self.inside
        half = turned @ self.inside - solved @ torch.linalg.solve_ex(inner, right, check_errors=False).result
        rotated = (2 * half - E @ self.inside).mT
        return join_regions(unpatchify(rotated, self.space.patch_size, self.shape), self.space.regions)

    def pull_back(
        self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"], directions: Float[Tensor, "k C H W"]
    ) -> Float[Tensor, "B n k"]:
        # Q(A)ε = ε - 2Aε + O(A²) with ε = E c, so the gradient of ⟨u, Qε⟩ in U is -2(u cᵀ - ε uᵀE).
        e, u, at = self._cut(base), self._cut(directions), self._cells_of(slots)
        B, k, cells = len(base), len(directions), self.cells
        e, E, c = (each.reshape(B, 1, cells, *each.shape[1:]) for each in (e, self.basis[at], self.inside[at]))
        u = u.reshape(1, k, cells, *u.shape[1:])
        return (-2 * (u @ c.mT - e @ (u.mT @ E))).reshape(B, k, -1).mT.contiguous()

    def parameters(self, slots: Int[Tensor, " B"], coordinates: Float[Tensor, "B n"]) -> Float[Tensor, "B m"]:
        outer = coordinates.reshape(-1, self.space.d, self.patches) @ self.basis[self._cells_of(slots)].mT
        return self.start[slots] + pack_skew(outer - outer.mT).reshape(len(slots), -1)

    def _cells_of(self, slots: Int[Tensor, " B"]) -> Int[Tensor, " Bgg"]:
        return (slots[:, None] * self.cells + torch.arange(self.cells, device=slots.device)).flatten()
