"""The losses, against numpy in float64."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ortho_core.estep.config import ReconstructionWeights
from ortho_core.losses import mean_absolute, mean_square


def two(shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (5, 7), (1, 3, 32, 32)])
def test_each_image_has_the_mean_over_all_its_own_numbers(shape):
    a, b = two(shape)
    apart = a.double().numpy() - b.double().numpy()
    axes = tuple(range(1, len(shape)))
    np.testing.assert_allclose(mean_square(a, b), (apart**2).mean(axes), rtol=1e-6)
    np.testing.assert_allclose(mean_absolute(a, b), np.abs(apart).mean(axes), rtol=1e-6)


@pytest.mark.parametrize("loss", [mean_square, mean_absolute])
def test_a_neighbour_that_is_not_finite_changes_neither_value_nor_gradient(loss):
    a, b = two((3, 4, 8, 8))
    spoilt = a.clone()
    spoilt[1] = float("nan")
    found = []
    for x in (a, spoilt):
        x.requires_grad_()
        values = loss(x, b)
        values[[0, 2]].sum().backward()
        found.append((values[[0, 2]].detach(), x.grad[[0, 2]]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_weight_is_not_negative_and_does_not_change():
    weights = ReconstructionWeights(pixel_l1_weight=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        weights.pixel_l1_weight = 1.0
    with pytest.raises(ValidationError, match="latent_loss_weight"):
        ReconstructionWeights(latent_loss_weight=-1e-6)
