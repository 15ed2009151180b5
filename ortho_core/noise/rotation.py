"""The orthogonal patch transform `Q ε`: one orthogonal matrix per image, applied to every patch of its noise map.

With g × g regions the map is cut into g × g cells, and each cell has its own matrix.

Axes: B images, C channels, H × W latent pixels, p patch size, d = C·p² block dimension, N = HW/p² patches per image,
g regions along a side, m = d(d-1)/2 skew parameters per matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.errors import UserError


def block_dimension(latent_shape: tuple[int, int, int], patch_size: int) -> int:
    """d = C·p² for a noise map (C, H, W). Raises UserError unless p divides H and W."""
    C, H, W = latent_shape
    if patch_size < 1 or H % patch_size or W % patch_size:
        fits = [p for p in range(1, min(H, W) + 1) if H % p == 0 and W % p == 0]
        raise UserError(f"patch_size {patch_size} does not divide the latent {C}×{H}×{W}; accepted: {fits}")
    return C * patch_size**2


def check_regions(latent_shape: tuple[int, int, int], patch_size: int, regions: int) -> None:
    """Raises UserError unless the map can be cut into regions × regions cells of complete patches."""
    _, H, W = latent_shape
    rows, columns = H // patch_size, W // patch_size
    if rows % regions or columns % regions:
        fits = [g for g in range(1, min(rows, columns) + 1) if rows % g == 0 and columns % g == 0]
        raise UserError(
            f"regions {regions} does not divide the {rows}×{columns} patches of side {patch_size}; accepted: {fits}"
        )


def skew_parameters(d: int) -> int:
    """m = d(d-1)/2, the dimension of so(d)."""
    return d * (d - 1) // 2


def patchify(noise: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B N d"]:
    """Cut each map into non-overlapping p × p patches, each flattened over (C, p, p)."""
    B, C, H, W = noise.shape
    p = patch_size
    blocks = noise.reshape(B, C, H // p, p, W // p, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // p), C * p * p)


def unpatchify(
    patches: Float[Tensor, "B N d"], patch_size: int, latent_shape: tuple[int, int, int]
) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify`."""
    C, H, W = latent_shape
    p = patch_size
    blocks = patches.reshape(-1, H // p, W // p, C, p, p)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(-1, C, H, W)


def unpack_skew(skew: Float[Tensor, "B m"], d: int) -> Float[Tensor, "B d d"]:
    """A with A[i, j] = a_k above the diagonal (row by row) and A = -Aᵀ."""
    rows, columns = torch.triu_indices(d, d, offset=1, device=skew.device)
    A = skew.new_zeros(skew.shape[0], d, d)
    A[:, rows, columns] = skew
    return A - A.mT


def pack_skew(A: Float[Tensor, "B d d"]) -> Float[Tensor, "B m"]:
    """The entries of A above the diagonal, row by row; the inverse of `unpack_skew`."""
    d = A.shape[-1]
    rows, columns = torch.triu_indices(d, d, offset=1, device=A.device)
    return A[:, rows, columns]


def cayley(A: Float[Tensor, "B d d"]) -> Float[Tensor, "B d d"]:
    """Q(A) = (I + A)⁻¹ (I - A) (Cayley 1846): orthogonal for every skew A, Q(0) = I, Q(A) = exp(-2A) + O(A³)."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # I + A is never singular, and a check would synchronise the GPU with the host.
    return torch.linalg.solve_ex(identity + A, identity - A, check_errors=False).result


def cut_regions(noise: Float[Tensor, "B C H W"], regions: int) -> Float[Tensor, "Bgg C h w"]:
    """The g × g cells of each map as separate maps, image by image, row by row."""
    B, C, H, W = noise.shape
    g = regions
    cells = noise.reshape(B, C, g, H // g, g, W // g).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(B * g * g, C, H // g, W // g)


def join_regions(cells: Float[Tensor, "Bgg C h w"], regions: int) -> Float[Tensor, "B C H W"]:
    """The inverse of `cut_regions`."""
    _, C, h, w = cells.shape
    g = regions
    return cells.reshape(-1, g, g, C, h, w).permute(0, 3, 1, 4, 2, 5).reshape(-1, C, g * h, g * w)


def rotate(
    noise: Float[Tensor, "B C H W"], skew: Float[Tensor, "B ggm"], patch_size: int, regions: int = 1
) -> Float[Tensor, "B C H W"]:
    """Q ε: every patch of image b multiplied by Q(A_b), or with regions by the Q of its cell.

    `skew` has the parameters of the cells one after another. Each patch keeps its norm. Differentiable in both arguments.
    """
    if regions > 1:
        cells = cut_regions(noise, regions)
        return join_regions(rotate(cells, skew.reshape(len(cells), -1), patch_size), regions)
    shape = (noise.shape[1], noise.shape[2], noise.shape[3])
    patches = patchify(noise, patch_size)
    d = patches.shape[-1]
    A = unpack_skew(skew, d)
    rotated = patches @ cayley(A).mT if patches.shape[1] >= d else rotate_few(patches, A)
    return unpatchify(rotated, patch_size, shape)


def rotate_few(patches: Float[Tensor, "B N d"], A: Float[Tensor, "B d d"]) -> Float[Tensor, "B N d"]:
    """Q(A) times each patch, without computing Q, for fewer patches than dimensions: Q = 2(I + A)⁻¹ - I."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    half = torch.linalg.solve_ex(identity + A, patches.mT, check_errors=False).result
    return 2 * half.mT - patches
