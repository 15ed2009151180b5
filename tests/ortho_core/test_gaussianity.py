import numpy as np
import pytest
import torch
from scipy import stats

from ortho_core.gaussianity import noise_statistics, plot_statistics, random_rotation
from ortho_core.noise import seeded_normal
from ortho_core.transform import patchify

NOISE = seeded_normal(list(range(32)), (4, 16, 16))


def test_distances_are_those_of_scipy():
    found = noise_statistics(NOISE, 2)
    entries = NOISE.double().flatten().numpy()
    squares = patchify(NOISE.double(), 2).square().sum(-1).flatten().numpy()
    assert found["marginal"]["ks"] == pytest.approx(stats.kstest(entries, "norm").statistic, abs=1e-9)
    assert found["patch_norm"]["ks"] == pytest.approx(stats.kstest(squares, stats.chi2(16).cdf).statistic, abs=1e-9)
    n = len(entries)
    assert found["marginal"]["null_95"] == pytest.approx(stats.kstwobign.ppf(0.95) / np.sqrt(n), rel=1e-4)


def test_true_noise_stays_inside_its_ranges_before_and_after_a_rotation():
    for noise in (NOISE, random_rotation(NOISE, 2, torch.Generator().manual_seed(1))):
        found = noise_statistics(noise, 2)
        assert abs(found["mean"]) < 4 * found["mean_null_std"]
        assert abs(found["variance"] - 1) < 4 * found["variance_null_std"]
        assert found["marginal"]["ks"] < 1.5 * found["marginal"]["null_95"]
        assert found["patch_norm"]["ks"] < 1.5 * found["patch_norm"]["null_95"]
        low, high = found["covariance"]["marchenko_pastur"]
        assert low * 0.95 < found["covariance"]["eigenvalues"][0]
        assert found["covariance"]["eigenvalues"][-1] < high * 1.05
        for value in (found["spatial"]["horizontal"], found["spatial"]["vertical"]):
            assert abs(value) < 5 * found["spatial"]["null_std"]


@pytest.mark.parametrize(
    ("spoil", "sees"),
    [
        (lambda e: 1.1 * e, lambda f: f["marginal"]["ks"] > f["marginal"]["null_95"]),
        (lambda e: e + 0.05, lambda f: abs(f["mean"]) > 5 * f["mean_null_std"]),
        (lambda e: (e + e.roll(1, 3)) / 2**0.5, lambda f: f["spatial"]["horizontal"] > 10 * f["spatial"]["null_std"]),
        (
            lambda e: (e + e.roll(2, 3)) / 2**0.5,
            lambda f: f["cross_patch"]["correlation"] > 10 * f["cross_patch"]["null_std"],
        ),
        (
            lambda e: (e + 0.7 * e[:, :1]) / 1.49**0.5,
            lambda f: f["covariance"]["eigenvalues"][-1] > f["covariance"]["marchenko_pastur"][1],
        ),
        (
            lambda e: (
                e * (1 + 0.5 * torch.sign(torch.randn(32, 1, 1, 1, generator=torch.Generator().manual_seed(0)))) / 1.118
            ),
            lambda f: f["patch_norm"]["ks"] > f["patch_norm"]["null_95"],
        ),
    ],
    ids=["scaled", "shifted", "neighbours", "patches", "channels", "norms"],
)
def test_each_departure_is_seen_by_its_statistic(spoil, sees):
    assert sees(noise_statistics(spoil(NOISE), 2))


def test_a_gan_vector_and_a_single_patch_have_statistics(tmp_path):
    flat = seeded_normal([1, 2, 3], (16, 1, 1))
    assert noise_statistics(flat, 1)["dimension"] == 16
    plot_statistics(NOISE, 2, "noise", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
