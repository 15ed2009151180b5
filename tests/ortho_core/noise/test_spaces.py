import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.noise.rotation import patchify, rotate
from ortho_core.noise.seeded import seeded_normal
from ortho_core.noise.spaces import Free, NoiseSpace, Rotations

SHAPE = (3, 8, 4)
SPACES = [Rotations(SHAPE, 2), Rotations(SHAPE, 2, 2), Rotations(SHAPE, 1, 4), Free(SHAPE)]


@pytest.mark.parametrize("space", SPACES)
def test_a_search_starts_next_to_the_base_noise_whatever_else_is_started(space):
    assert isinstance(space, NoiseSpace)
    base, x = seeded_normal([4, 9], SHAPE), space.start([4, 9])
    assert x.shape == (2, space.parameters)
    assert (space.noise(base, x) - base).abs().max() < 0.01
    assert torch.equal(space.start([9])[0], x[1])


@pytest.mark.parametrize("space", SPACES)
def test_pull_back_is_the_gradient_at_the_base_noise(space):
    base, directions = seeded_normal([4, 9], SHAPE).double(), seeded_normal([1, 2, 3], SHAPE).double()
    x = torch.zeros(2, space.parameters, dtype=torch.float64, requires_grad=True)
    noise = space.noise(base, x)
    found = space.pull_back(base, directions)
    for k, direction in enumerate(directions):
        (expected,) = torch.autograd.grad((noise * direction).sum(), x, retain_graph=True)
        torch.testing.assert_close(found[:, :, k], expected)


@pytest.mark.parametrize("space", SPACES)
def test_reach_is_the_step_that_moves_noise_by_its_own_length(space):
    base = seeded_normal(list(range(200)), SHAPE).double()
    step = torch.randn(200, space.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-4 * space.reach * step / step.norm(dim=1, keepdim=True)
    moved = (space.noise(base, step) - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)
    assert moved.mean() == pytest.approx(1e-4, rel=0.03)


def test_each_region_is_rotated_by_its_own_matrix():
    space = Rotations(SHAPE, 2, 2)
    base = seeded_normal([4], SHAPE)
    x = torch.randn(1, space.parameters, generator=torch.Generator().manual_seed(1))
    rotated = space.noise(base, x)
    each = space.parameters // 4
    for cell in range(4):
        rows, columns = slice(4 * (cell // 2), 4 * (cell // 2) + 4), slice(2 * (cell % 2), 2 * (cell % 2) + 2)
        skew = x[:, cell * each : (cell + 1) * each]
        torch.testing.assert_close(rotated[:, :, rows, columns], rotate(base[:, :, rows, columns], skew, 2))
    torch.testing.assert_close(patchify(rotated, 2).norm(dim=2), patchify(base, 2).norm(dim=2))


def test_a_grid_that_cuts_patches_is_refused():
    with pytest.raises(UserError, match=r"regions 4 does not divide the 4×2 patches of side 2; accepted: \[1, 2\]"):
        Rotations(SHAPE, 2, 4)
