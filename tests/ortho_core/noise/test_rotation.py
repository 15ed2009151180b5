import pytest
import torch
import torch.nn.functional as F

from ortho_core.errors import UserError
from ortho_core.noise.rotation import (
    block_dimension,
    cayley,
    pack_skew,
    patchify,
    rotate,
    skew_parameters,
    unpack_skew,
    unpatchify,
)


def random_skew(batch: int, d: int, scale: float = 1.0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(d)
    return scale * torch.randn(batch, skew_parameters(d), dtype=torch.float64, generator=stream)


@pytest.mark.parametrize(
    ("shape", "p"), [((4, 8, 8), 2), ((3, 6, 4), 2), ((1, 4, 4), 4), ((5, 1, 1), 1), ((4, 8, 8), 1)]
)
def test_unpatchify_undoes_patchify_and_patches_are_those_of_unfold(shape, p):
    noise = torch.randn(3, *shape)
    patches = patchify(noise, p)
    assert patches.shape == (3, shape[1] * shape[2] // p**2, block_dimension(shape, p))
    assert torch.equal(unpatchify(patches, p, shape), noise)
    assert torch.equal(patches, F.unfold(noise, p, stride=p).mT)


@pytest.mark.parametrize("d", [1, 2, 3, 16, 64])
def test_cayley_is_a_rotation_for_skew_of_any_size(d):
    Q = cayley(unpack_skew(random_skew(4, d, scale=3.0), d))
    identity = torch.eye(d, dtype=torch.float64).expand(4, d, d)
    assert torch.allclose(Q @ Q.mT, identity, atol=1e-12)
    assert torch.allclose(torch.linalg.det(Q), torch.ones(4, dtype=torch.float64), atol=1e-9)


def test_cayley_agrees_with_the_exponential_to_second_order():
    # Q(A) = exp(-2A) + (2/3) A³ + ...: halving A must divide the difference by eight.
    A = unpack_skew(random_skew(2, 6), 6)
    errors = []
    for h in (1e-2, 5e-3, 2.5e-3):
        errors.append((cayley(h * A) - torch.linalg.matrix_exp(-2 * h * A)).norm())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.05)


def test_zero_parameters_leave_the_noise_as_it_is():
    noise = torch.randn(2, 4, 8, 8)
    assert torch.equal(rotate(noise, torch.zeros(2, skew_parameters(16)), 2), noise)


def test_rotation_keeps_every_patch_norm_and_is_one_matrix_per_image():
    noise = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    skew = random_skew(3, 16)
    rotated = rotate(noise, skew, 2)
    before, after = patchify(noise, 2), patchify(rotated, 2)
    assert torch.allclose(before.norm(dim=-1), after.norm(dim=-1), atol=1e-12)
    assert torch.allclose(before @ before.mT, after @ after.mT, atol=1e-11)
    assert torch.allclose(rotate(noise[1:2], skew[1:2], 2), rotated[1:2], atol=1e-12)


def test_skew_packing_round_trip():
    skew = random_skew(3, 7)
    A = unpack_skew(skew, 7)
    assert torch.equal(A, -A.mT)
    assert torch.equal(pack_skew(A), skew)


def test_gradient_against_finite_differences():
    noise = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    skew = random_skew(2, 8, 0.3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda e, a: rotate(e, a, 2), (noise, skew), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [0, 3, 16])
def test_a_patch_size_that_does_not_divide_is_refused_with_those_that_do(p):
    with pytest.raises(UserError, match=r"does not divide the latent 4×8×8; accepted: \[1, 2, 4, 8\]"):
        block_dimension((4, 8, 8), p)


@pytest.mark.parametrize(("shape", "p"), [((4, 8, 8), 8), ((4, 8, 8), 4), ((2, 4, 4), 2)])
def test_few_patches_are_rotated_by_the_same_matrix_as_many(shape, p):
    """Fewer patches than dimensions are solved for, without the matrix."""
    noise = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    d = block_dimension(shape, p)
    skew = random_skew(3, d, 0.5)
    patches = patchify(noise, p)
    assert patches.shape[1] < d
    expected = unpatchify(patches @ cayley(unpack_skew(skew, d)).mT, p, shape)
    torch.testing.assert_close(rotate(noise, skew, p), expected)
