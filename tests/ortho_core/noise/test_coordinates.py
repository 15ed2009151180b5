import pytest
import torch

from ortho_core.noise.coordinates import Coordinates, Parameters, coordinates
from ortho_core.noise.few_patches import FewPatches
from ortho_core.noise.rotation import unpack_skew
from ortho_core.noise.seeded import seeded_normal
from ortho_core.noise.spaces import Free, Rotations

SHAPE = (4, 8, 8)
FEW = [Rotations(SHAPE, 8), Rotations(SHAPE, 4), Rotations(SHAPE, 4, 2), Rotations(SHAPE, 2, 4)]
SPACES = [*FEW, Rotations(SHAPE, 2), Free(SHAPE)]


def entered(space, slots, seeds, parameters=None):
    """Coordinates of four slots with images in some, and those images' base noise."""
    base = seeded_normal(seeds, SHAPE).double()
    where = coordinates(space, base[:1].expand(4, -1, -1, -1))
    start = space.start(seeds).double() if parameters is None else parameters
    return where, base, where.enter(torch.tensor(slots), base, start)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_few_patches_have_coordinates_of_their_own_and_many_have_the_parameters():
    assert [type(coordinates(space, torch.zeros(1, *SHAPE))) for space in SPACES] == [FewPatches] * 4 + [Parameters] * 2
    assert [coordinates(space, torch.zeros(1, *SHAPE)).count for space in FEW] == [256] * 4
    assert isinstance(coordinates(FEW[0], torch.zeros(1, *SHAPE)), Coordinates)


@pytest.mark.parametrize("space", SPACES)
def test_where_a_search_starts_is_what_it_was_given(space):
    given = normal(2, space.parameters) * space.reach / space.parameters**0.5
    where, base, x = entered(space, [3, 1], [4, 9], given)
    slots = torch.tensor([3, 1])
    torch.testing.assert_close(where.parameters(slots, x), given)
    whole, at = torch.zeros(4, *SHAPE, dtype=torch.float64), torch.zeros(4, where.count, dtype=torch.float64)
    whole[slots], at[slots] = base, x
    torch.testing.assert_close(where.noise(whole, at)[slots], space.noise(base, given))


@pytest.mark.parametrize("space", FEW)
def test_the_noise_at_coordinates_is_the_rotation_of_their_parameters(space):
    given = 0.3 * normal(4, space.parameters) / space.d
    where, base, x = entered(space, [2, 0, 1, 3], [4, 9, 1, 7], given)
    slots = torch.tensor([2, 0, 1, 3])
    step = normal(4, where.count)
    moved = x + 3 * where.reach * step / step.norm(dim=1, keepdim=True)
    whole, at = torch.empty_like(base), torch.empty_like(moved)
    whole[slots], at[slots] = base, moved
    noise = where.noise(whole, at)[slots]
    torch.testing.assert_close(noise, space.noise(base, where.parameters(slots, moved)))
    assert (noise - space.noise(base, given)).flatten(1).norm(dim=1).min() > 8  # far, of a length of 16


@pytest.mark.parametrize("space", FEW)
def test_whatever_parameters_do_to_few_patches_coordinates_do_too(space):
    """To first order: with U = AE - EEᵀAE/2 it is (U Eᵀ - E Uᵀ) E = AE."""
    where, base, x = entered(space, [0, 1, 2, 3], [4, 9, 1, 2], torch.zeros(4, space.parameters, dtype=torch.float64))
    skew = 1e-5 * normal(4, space.parameters)
    A, E = unpack_skew(skew.reshape(4 * space.regions**2, -1), space.d), where.basis
    U = A @ E - E @ (E.mT @ A @ E) / 2
    moved, expected = where.noise(base, U.reshape_as(x)) - base, space.noise(base, skew) - base
    assert (moved - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("space", SPACES)
def test_pull_back_is_the_gradient_at_the_base_noise(space):
    zeros = torch.zeros(2, space.parameters, dtype=torch.float64)
    where, base, x = entered(space, [3, 1], [4, 9], zeros)
    directions, slots = seeded_normal([1, 2, 3], SHAPE).double(), torch.tensor([3, 1])
    whole, at = torch.zeros(4, *SHAPE, dtype=torch.float64), torch.zeros(4, where.count, dtype=torch.float64)
    whole[slots], at[slots] = base, x
    at.requires_grad_(True)
    noise = where.noise(whole, at)
    found = where.pull_back(slots, base, directions)
    for k, direction in enumerate(directions):
        (expected,) = torch.autograd.grad((noise * direction).sum(), at, retain_graph=True)
        torch.testing.assert_close(found[:, :, k], expected[slots])


@pytest.mark.parametrize("space", FEW)
def test_reach_is_the_step_that_moves_noise_by_its_own_length(space):
    seeds = list(range(200))
    base = seeded_normal(seeds, SHAPE).double()
    where = coordinates(space, base)
    where.enter(torch.arange(200), base, torch.zeros(200, space.parameters, dtype=torch.float64))
    step = normal(200, where.count)
    step = 1e-4 * where.reach * step / step.norm(dim=1, keepdim=True)
    moved = (where.noise(base, step) - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)
    # What is parallel to the patches themselves moves nothing: one part in d·N.
    assert moved.mean() == pytest.approx(1e-4, rel=0.04)


def test_a_slot_is_what_it_is_whatever_the_others_hold():
    space = FEW[1]
    alone, base, _ = entered(space, [2], [4])
    beside, _, _ = entered(space, [0, 2, 3], [8, 4, 5])
    four, at = seeded_normal([1, 2, 4, 3], SHAPE).double(), normal(4, alone.count)
    four[2] = base[0]
    assert torch.equal(alone.noise(four, at)[2], beside.noise(four, at)[2])
