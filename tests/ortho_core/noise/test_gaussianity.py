import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from ortho_core.noise.gaussianity import (
    NOTABLE,
    departures,
    diagnostics,
    noise_statistics,
    plot_statistics,
    random_rotation,
    verdict,
)
from ortho_core.noise.rotation import patchify
from ortho_core.noise.seeded import seeded_normal

NOISE = seeded_normal(list(range(32)), (4, 16, 16))


def test_distances_are_those_of_scipy():
    found = noise_statistics(NOISE, 2)
    entries = NOISE.double().flatten().numpy()
    squares = patchify(NOISE.double(), 2).square().sum(-1).flatten().numpy()
    assert found.marginal.ks == pytest.approx(stats.kstest(entries, "norm").statistic, abs=1e-9)
    assert found.patch_norm.ks == pytest.approx(stats.kstest(squares, stats.chi2(16).cdf).statistic, abs=1e-9)
    n = len(entries)
    assert found.marginal.null_95 == pytest.approx(stats.kstwobign.ppf(0.95) / np.sqrt(n), rel=1e-4)


def test_true_noise_stays_inside_its_ranges_before_and_after_a_rotation():
    for noise in (NOISE, random_rotation(NOISE, 2, torch.Generator().manual_seed(1))):
        found = noise_statistics(noise, 2)
        assert abs(found.mean) < 4 * found.mean_null_std
        assert abs(found.variance - 1) < 4 * found.variance_null_std
        assert found.marginal.ks < 1.5 * found.marginal.null_95
        assert found.patch_norm.ks < 1.5 * found.patch_norm.null_95
        low, high = found.covariance.marchenko_pastur
        assert low * 0.95 < found.covariance.eigenvalues[0]
        assert found.covariance.eigenvalues[-1] < high * 1.05
        assert max(departures(found).values()) < NOTABLE
        assert verdict(found) == "32 maps: no departure from N(0, I) beyond 4 null standard deviations"
        assert found.per_map.marginal_over_null_95 < 0.2


def correlation(found, lag):
    """In null standard deviations."""
    return found.autocorrelation[lag].correlation / found.autocorrelation[lag].null_std


@pytest.mark.parametrize(
    ("spoil", "sees"),
    [
        (lambda e: 1.1 * e, lambda f: f.marginal.ks > f.marginal.null_95),
        (lambda e: e + 0.05, lambda f: abs(f.mean) > 5 * f.mean_null_std),
        (lambda e: (e + e.roll(1, 3)) / 2**0.5, lambda f: correlation(f, "0,1") > 10),
        (
            lambda e: (e + e.roll(2, 3)) / 2**0.5,
            lambda f: f.cross_patch.correlation > 10 * f.cross_patch.null_std,
        ),
        (lambda e: (e + e.roll((1, -1), (2, 3))) / 2**0.5, lambda f: correlation(f, "1,-1") > 10),
        (
            lambda e: (e + 0.5 * e[:1].roll((5, 3), (2, 3))) / 1.25**0.5,
            lambda f: f.position.mean_square > 1 + 20 * f.position.null_std,
        ),
        (
            lambda e: (e + 0.7 * e[:, :1]) / 1.49**0.5,
            lambda f: f.covariance.eigenvalues[-1] > f.covariance.marchenko_pastur[1],
        ),
        (
            lambda e: (
                e * (1 + 0.5 * torch.sign(torch.randn(32, 1, 1, 1, generator=torch.Generator().manual_seed(0)))) / 1.118
            ),
            lambda f: f.patch_norm.ks > f.patch_norm.null_95,
        ),
    ],
    ids=["scaled", "shifted", "neighbours", "patches", "diagonals", "a common picture", "channels", "norms"],
)
def test_each_departure_is_seen_by_its_statistic(spoil, sees):
    found = noise_statistics(spoil(NOISE), 2)
    assert sees(found)
    assert "depart from N(0, I)" in verdict(found)


def test_a_gan_vector_and_a_single_patch_have_statistics(tmp_path):
    flat = seeded_normal([1, 2, 3], (16, 1, 1))
    assert noise_statistics(flat, 1).dimension == 16
    plot_statistics(NOISE, 2, "noise", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_moments_of_each_patch_entry_are_those_of_numpy():
    found = noise_statistics(NOISE, 2)
    flat = patchify(NOISE.double(), 2).reshape(-1, 16).numpy()
    assert found.dimension_mean == pytest.approx(flat.mean(0).tolist())
    assert found.dimension_variance == pytest.approx(flat.var(0, ddof=1).tolist())


def test_diagnostics_are_a_picture_and_the_numbers_with_their_verdict():
    statistics, files = diagnostics(1.2 * NOISE, 2, "loud noise")
    content = json.loads(files[".json"])
    assert content["per_map"]["mean_square"] == statistics.per_map.mean_square
    assert content["per_map"]["mean_square"] == pytest.approx(1.44, rel=0.02)
    assert content["verdict"].startswith("32 maps depart from N(0, I), in null standard deviations: ")
    assert "power of the maps by" in content["verdict"]
    with Image.open(io.BytesIO(files[".png"])) as drawing:
        assert min(drawing.size) > 500
