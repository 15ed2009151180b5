import pytest
import torch

from ortho_core.noise.prior import gaussian_prior, norm_term, whiteness_term
from ortho_core.noise.seeded import seeded_normal


def test_the_prior_is_lowest_for_gaussian_noise_and_knows_each_kind_of_departure():
    white = seeded_normal(list(range(20)), (4, 16, 16))
    n = white[0].numel()
    # Of the norm of Gaussian noise, the likelihood is all but the highest: half a square of a unit normal, over n.
    assert norm_term(white).mean() < 2 / n
    assert whiteness_term(white).mean() == pytest.approx(1 / 256, rel=0.15)
    smooth = (white + white.roll(1, 3)) / 2**0.5
    assert whiteness_term(smooth).mean() > 5 * whiteness_term(white).mean()
    alike = white.clone()
    alike[:, 1] = alike[:, 0]
    for departed in (1.3 * white, 0.7 * white, smooth, alike):
        assert (gaussian_prior(departed) > gaussian_prior(white)).all()


def test_the_norm_term_is_the_likelihood_of_chi():
    noise = seeded_normal([1, 2], (2, 3, 3)) * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    n = 18
    r = noise.flatten(1).norm(dim=1)
    likelihood = (n - 1) * r.log() - r**2 / 2
    best = (n - 1) * 0.5 * torch.tensor(n - 1.0).log() - (n - 1) / 2
    torch.testing.assert_close(norm_term(noise), (best - likelihood) / n)


def test_one_number_has_no_neighbours_to_be_correlated_with():
    assert whiteness_term(torch.ones(3, 1, 1, 1)).tolist() == [0, 0, 0]
