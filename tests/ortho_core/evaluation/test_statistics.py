"""The statistics against independent computations and known distributions."""

import itertools

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.metric_kid import kernel_poly, kid_features_to_metric

from ortho_core.evaluation import statistics
from ortho_core.evaluation.metrics import Estimate
from ortho_core.evaluation.statistics import (
    around,
    cmmd,
    fid,
    in_their_span,
    kid,
    mean_figure,
    mmd,
    precision_recall,
    ratio_figure,
    resampled_frechet,
    resampled_mmd,
    resampled_share,
    resamples,
)


def features(n, D, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(D, D)) / np.sqrt(D)
    return ((rng.normal(size=(n, D)) + shift) @ mix).astype(np.float32)


X, Y = features(40, 6, 0.4, seed=1), features(40, 6, seed=2)
ONCE = np.ones((1, 40), np.float32)


def polynomial(a, b):
    return (float(np.dot(a.astype(np.float64), b.astype(np.float64))) / len(a) + 1) ** 3


def gaussian(a, b):
    a, b = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for v in (a, b))
    return 1000 * np.exp(-((a - b) ** 2).sum() / (2 * 10**2))


def double_loop(x, y, kernel):
    """Gretton et al. 2012, lemma 6: the mean over i ≠ j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)."""
    pairs = list(itertools.permutations(range(len(x)), 2))
    terms = (kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i]) for i, j in pairs)
    return sum(terms) / len(pairs)


@pytest.mark.parametrize(("metric", "kernel"), [(kid, polynomial), (cmmd, gaussian)])
def test_kid_and_cmmd_are_the_double_loop_over_pairs(metric, kernel):
    assert metric(X, Y, resamples(40, 0, 3)).value == pytest.approx(double_loop(X, Y, kernel), rel=1e-4)


def test_kid_of_independent_sets_is_that_of_torch_fidelity_but_for_the_pairs_of_a_row():
    whole = {"kid_subsets": 1, "kid_subset_size": 40, "verbose": False}
    published = kid_features_to_metric(torch.from_numpy(X), torch.from_numpy(Y), **whole)
    cross = kernel_poly(X.astype(np.float64), Y.astype(np.float64))
    n = len(X)
    apart = 2 * cross.sum() / n**2 - 2 * (cross.sum() - np.trace(cross)) / (n * (n - 1))
    value = kid(X, Y, resamples(n, 0, 3)).value
    assert value == pytest.approx(published["kernel_inception_distance_mean"] + apart, rel=1e-4)


def test_fid_is_that_of_the_matrix_square_root():
    x, y = X.astype(np.float64), Y.astype(np.float64)
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert fid(X, Y, resamples(40, 0, 3)).value == pytest.approx(expected, rel=1e-5)
    assert fid(X, X, resamples(40, 0, 3)).value == pytest.approx(0, abs=1e-6)
    # More features than rows: the same number from the span of the rows alone.
    wide = [features(12, 60, shift, seed) for shift, seed in ((0.3, 3), (0.0, 4))]
    x, y = (f.astype(np.float64) for f in wide)
    # tr((Σ₁Σ₂)^½) through the symmetric √Σ₁ Σ₂ √Σ₁: the product itself is singular.
    values, vectors = np.linalg.eigh(np.cov(x.T))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ np.cov(y.T) @ root).clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T)) - 2 * cross
    assert in_their_span(*wide)[0].shape == (12, 24)
    assert fid(*wide, resamples(12, 0, 3)).value == pytest.approx(expected, rel=1e-4)


def test_a_resample_that_draws_each_row_once_gives_the_value():
    assert resampled_mmd(X, Y, kernel_poly, ONCE)[0] == pytest.approx(mmd(X, Y, kernel_poly))
    for x, y in ((X, Y), in_their_span(features(12, 60, 0.3), features(12, 60))):
        once = np.ones((1, len(x)), np.float32)
        assert resampled_frechet(x, y, once)[0] == pytest.approx(fid(x, y, resamples(len(x), 0, 3)).value, rel=1e-6)
    shares = [figure.value for figure in precision_recall(X, Y, resamples(40, 0, 3))]
    x, y, once = torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(ONCE)
    assert [resampled_share(x, y, once)[0], resampled_share(y, x, once)[0]] == pytest.approx(shares)


def test_a_resample_is_what_its_rows_would_give_without_their_copies(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 7)
    w = resamples(40, 5, 1)
    drawn = np.repeat(np.arange(40), w[0].astype(int))
    pairs = [(i, j) for i, j in itertools.product(drawn, drawn) if i != j]
    expected = np.mean([polynomial(X[i], X[j]) + polynomial(Y[i], Y[j]) - 2 * polynomial(X[i], Y[j]) for i, j in pairs])
    assert resampled_mmd(X, Y, kernel_poly, w)[0] == pytest.approx(expected, rel=1e-5)
    x, y = X[drawn].astype(np.float64), Y[drawn].astype(np.float64)
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert resampled_frechet(X, Y, w)[0] == pytest.approx(expected, rel=1e-5)
    there = np.unique(drawn)
    apart = np.linalg.norm(Y[there, None] - Y[there][None], axis=-1)
    radius = np.sort(apart, axis=1)[:, 3]
    inside = (np.linalg.norm(X[drawn, None] - Y[there][None], axis=-1) <= radius).any(1)
    found = resampled_share(torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(w))
    assert found[0] == pytest.approx(inside.mean(), abs=1e-6)


def test_precision_and_recall_of_sets_whose_answer_is_plain():
    w = resamples(40, 0, 20)
    same, far = precision_recall(X, X, w), precision_recall(X, X + 100, w)
    assert [f.value for f in same] == [1, 1]
    assert [f.value for f in far] == [0, 0]
    # All fakes at one spot of the targets: each lies among them, and few targets lie among the fakes.
    precision, recall = precision_recall(Y[:1] + 1e-3 * X, Y, w)
    assert precision.value == 1
    assert recall.value < 0.1


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        found = mean_figure(rng.exponential(size=100), resamples(100, i, 200))
        hits += found.low <= 1 <= found.high
        assert found.low <= found.value <= found.high
        assert found.count == 100
    assert 0.88 < hits / 200 < 0.99


def test_the_interval_of_a_ratio_covers_it():
    """Energies that hang together row by row, as those of a sample and its target do; their means are as 3 to 4."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        contrast = rng.exponential(size=100)
        values, others = (k * contrast * rng.exponential(size=100) for k in (0.75, 1.0))
        found = ratio_figure(values, others, resamples(100, i, 200))
        hits += found.low <= 0.75 <= found.high
        assert found.value == pytest.approx(values.mean() / others.mean())
        assert found.low <= found.value <= found.high
        assert found.count == 100
    assert 0.88 < hits / 200 < 0.99


def test_a_resample_brings_both_sides_of_a_row_along():
    others = np.arange(1.0, 41)
    found = ratio_figure(0.5 * others, others, resamples(40, 0, 50))
    assert (found.low, found.value, found.high) == pytest.approx((0.5, 0.5, 0.5))
    values, w = np.arange(40.0)[::-1], resamples(40, 5, 50)
    drawn = [np.repeat(np.arange(40), counts.astype(int)) for counts in w]
    ratios = [values[rows].mean() / others[rows].mean() for rows in drawn]
    found = ratio_figure(values, others, w)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_a_ratio_to_nothing_is_no_figure():
    w = resamples(9, 0, 50)
    assert ratio_figure(np.ones(9), np.zeros(9), w) is None
    assert ratio_figure(np.full(9, np.nan), np.full(9, np.nan), w) is None
    # A third of the resamples lack the only row that has any; the others have a ratio.
    one = np.eye(9)[0]
    assert ((w @ one) == 0).any()
    assert ratio_figure(one, one, w) == Estimate(1.0, 1.0, 1.0, 9)


@pytest.mark.parametrize("metric", [kid, fid, lambda *a: precision_recall(*a)[0], lambda *a: precision_recall(*a)[1]])
def test_intervals_are_as_wide_as_the_values_scatter(metric):
    """Normal features that are 0.5 apart: the spread of one draw's resamples against that of the value over 40 draws."""
    found = [
        metric(features(80, 8, 0.5, seed=2 * i), features(80, 8, seed=2 * i + 1), resamples(80, i, 60))
        for i in range(40)
    ]
    values = np.array([f.value for f in found])
    reach = np.mean([f.high - f.low for f in found]) / 2
    assert 0.7 < reach / (1.96 * values.std(ddof=1)) < 1.6


def test_kid_intervals_cover_the_distance_of_the_distributions():
    """k(x, y) of Gaussians is known: E(x·y/D + 1)³ for x ~ N(m, I), y ~ N(0, I) from the moments of x·y."""
    D, n, hits = 4, 100, 0
    m = np.full(D, 0.6)

    def expected(a, b):
        # x·y for independent x ~ N(a, I), y ~ N(b, I), by a quadrature that is exact for these moments.
        nodes, weights = np.polynomial.hermite_e.hermegauss(6)
        weights = weights / weights.sum()
        moments = []
        for p in (1, 2, 3):
            moments.append(
                [
                    sum(
                        u * v * ((a[d] + s) * (b[d] + t)) ** p
                        for s, u in zip(nodes, weights, strict=True)
                        for t, v in zip(nodes, weights, strict=True)
                    )
                    for d in range(D)
                ]
            )
        m1, m2, m3 = map(np.array, moments)
        mean, var, third = m1.sum(), (m2 - m1**2).sum(), (m3 - 3 * m2 * m1 + 2 * m1**3).sum()
        s1, s2, s3 = mean, var + mean**2, third + 3 * mean * var + mean**3
        return s3 / D**3 + 3 * s2 / D**2 + 3 * s1 / D + 1

    zero = np.zeros(D)
    truth = expected(m, m) + expected(zero, zero) - 2 * expected(m, zero)
    for i in range(100):
        rng = np.random.default_rng(i)
        x, y = rng.normal(size=(n, D)) + m, rng.normal(size=(n, D))
        found = kid(x.astype(np.float32), y.astype(np.float32), resamples(n, i, 100))
        hits += found.low <= truth <= found.high
    assert hits / 100 >= 0.88


def test_a_spread_is_put_around_the_value_and_cut_off():
    spread = np.array([4.0, 5.0, 6.0])
    found = around(0.5, spread, 9)
    assert (found.value, found.low, found.high, found.count) == pytest.approx((0.5, -1.46, 2.46, 9))
    assert around(0.5, spread, 9, 0.0, 1.0) == Estimate(0.5, 0.0, 1.0, 9)
