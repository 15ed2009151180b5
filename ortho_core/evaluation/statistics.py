"""Numbers with 95 % intervals, from the figures and features of rows (bootstrap over rows).

A resample draws n of the n rows with replacement. It is stored as n weights: how often each row was drawn. The model's image
and the target of a row are always drawn together, because both depend on its prompt. All figures and models share the same
resamples.

The interval of a mean, or of a ratio of means, is the middle 95 % of the resampled values. A distance between two sets is not a
mean: it is larger for a resample than for all rows, because a resample has fewer distinct rows. Here the interval is the value
± 1.96 standard deviations of the resampled distances. KID and CMMD leave out the pairs of a row and its own copy in a resample.
The Fréchet distance is strongly nonlinear in the weights unless there are far fewer features than rows. Its interval would
be up to four times too wide. There the weights move only a tenth of the way to each resample, and the spread is
multiplied by ten.

Axes: n rows, D features, R resamples.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ortho_core.evaluation.metrics import Estimate

#: k(a, b) for all pairs of two sets of features: (n, D), (m, D) to (n, m).
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

RESAMPLES = 500
#: Resamples of the Fréchet distance: at most, at least, and the intended floating-point operations of all. Each resample costs
#: as much as the distance.
FRECHET_RESAMPLES, FEWEST_RESAMPLES, WORK = 200, 20, 4e9
#: The fraction of the way from equal weights to a resample, for the Fréchet distance.
FRECHET_STEP = 0.1
#: Smallest number of rows for which a distance between sets is measured.
FEWEST_ROWS = 8
#: In precision and recall, a row's ball reaches to this neighbour.
NEIGHBOURS = 3
#: Nearest rows that are searched for rows of a resample: fewer than 3 of 16 are in it once in 20,000 cases.
LOOKED_THROUGH = 16
#: Rows whose distances to all rows are in memory at once.
BLOCK = 1024
#: Up to this number of rows, KID and CMMD use all pairs. More rows are split into sets of at most this size, and averaged.
WHOLE = 4096
#: Bandwidth and scale of CMMD (Jayasumana et al. 2024).
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


def resamples(rows: int, seed: int, count: int = RESAMPLES) -> Float[np.ndarray, "R n"]:
    """How often each row is in each resample, float32; each resample sums to n."""
    draws = np.random.default_rng([seed, rows])
    return draws.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float32)


def estimate(value: float, low: float, high: float, count: int) -> Estimate:
    """An `Estimate` of plain Python numbers, also from NumPy scalars."""
    return Estimate(float(value), float(low), float(high), int(count))


def mean_figure(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "R n"]) -> Estimate:
    """The mean over rows, with the middle 95 % of the resampled means."""
    values = values.astype(np.float64)
    low, high = np.quantile(weights @ values / len(values), [0.025, 0.975])
    return estimate(values.mean(), low, high, len(values))


def ratio_figure(
    values: Float[np.ndarray, " n"], others: Float[np.ndarray, " n"], weights: Float[np.ndarray, "R n"]
) -> Estimate | None:
    """The mean of `values` divided by the mean of `others`, which are ≥ 0; None if `others` are all 0 or have a NaN.

    Resamples in which `others` are all 0 have no ratio and are left out.
    """
    values, others = values.astype(np.float64), others.astype(np.float64)
    if not others.sum() > 0:
        return None
    above, below = weights @ values, weights @ others
    positive = below > 0
    low, high = np.quantile(above[positive] / below[positive], [0.025, 0.975])
    return estimate(values.sum() / others.sum(), low, high, len(values))


def around(
    value: float, resampled: Float[np.ndarray, " R"], count: int, least: float = -np.inf, most: float = np.inf
) -> Estimate:
    """The value ± 1.96 standard deviations of its resamples, clipped to [`least`, `most`]; their mean may differ."""
    reach = 1.96 * float(resampled.std(ddof=1))
    return estimate(value, max(value - reach, least), min(value + reach, most), count)


def kid(
    fakes: Float[np.ndarray, "n D"], reals: Float[np.ndarray, "n D"], weights: Float[np.ndarray, "R n"]
) -> Estimate:
    """KID: MMD² with the kernel (x·y/D + 1)³ (Bińkowski et al. 2018). It is unbiased, so it may be below 0."""
    from torch_fidelity.metric_kid import kernel_poly

    return around(mmd(fakes, reals, kernel_poly), resampled_mmd(fakes, reals, kernel_poly, weights), len(fakes))


def cmmd(
    fakes: Float[np.ndarray, "n D"], reals: Float[np.ndarray, "n D"], weights: Float[np.ndarray, "R n"]
) -> Estimate:
    """CMMD: 1000·MMD² of normalised CLIP embeddings, kernel exp(-|x - y|²/200); here the unbiased estimate."""
    from torch_fidelity.metric_kid import kernel_rbf

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return CMMD_SCALE * kernel_rbf(a, b, kid_kernel_rbf_sigma=CMMD_SIGMA)

    fakes, reals = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (fakes, reals))
    return around(mmd(fakes, reals, kernel), resampled_mmd(fakes, reals, kernel, weights), len(fakes))


def mmd(fakes: Float[np.ndarray, "n D"], reals: Float[np.ndarray, "n D"], kernel: Kernel) -> float:
    """The unbiased MMD² of two sets of images of the same rows, by torch-fidelity.

    The fake and the real image of a row share the prompt, so they are more alike than a random fake and real image. The
    U-statistic of Gretton et al. (2012, lemma 6) leaves these pairs out. With them the value would be too low, and the base
    model's distance to itself would not be 0.
    """
    from torch_fidelity.metric_kid import mmd2

    order = np.random.default_rng(0).permutation(len(fakes))
    values = []
    for part in np.array_split(order, -(-len(fakes) // WHOLE)):
        x, y = (features[part].astype(np.float64) for features in (fakes, reals))
        values.append(float(mmd2(kernel(x, x), kernel(x, y), kernel(y, y), mmd_est="u-statistic")))
    return float(np.mean(values))


def resampled_mmd(
    fakes: Float[np.ndarray, "n D"], reals: Float[np.ndarray, "n D"], kernel: Kernel, weights: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    """`mmd` of each resample, without the pairs of a row and its own copy.

    Σ_{i≠j} w_i w_j (k(x_i, x_j) + k(y_i, y_j) - 2·k(x_i, y_j)) / Σ_{i≠j} w_i w_j.
    """
    x, y, w = (np.asarray(a, np.float64) for a in (fakes, reals, weights))
    total = np.zeros(len(w))
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        block = kernel(x[part], x) + kernel(y[part], y) - 2 * kernel(x[part], y)
        rows = np.arange(len(block))
        block[rows, start + rows] = 0
        total += (w[:, part].T * (block @ w.T)).sum(0)
    return total / (len(x) ** 2 - (w**2).sum(1))


def fid(
    fakes: Float[np.ndarray, "n D"], reals: Float[np.ndarray, "n D"], weights: Float[np.ndarray, "R n"]
) -> Estimate:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) (Heusel et al. 2017), by torch-fidelity. Few rows bias it upwards."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    x, y = in_their_span(fakes, reals)
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (x, y)]
    value = max(float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]), 0.0)
    n, D = x.shape
    most = int(np.clip(WORK / (2 * n * D * min(n, D)), FEWEST_RESAMPLES, FRECHET_RESAMPLES))
    near = 1 + FRECHET_STEP * (weights[:most] - 1)
    return around(value, resampled_frechet(x, y, near) / FRECHET_STEP, len(x), least=0.0)


def in_their_span(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets of features in float64, in a basis of their common span if that has fewer axes. Distances do not change."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    middle = (x.mean(0) + y.mean(0)) / 2
    x, y = x - middle, y - middle
    if len(x) + len(y) < x.shape[1]:
        axes = np.linalg.qr(np.concatenate([x, y]).T)[0]
        x, y = x @ axes, y @ axes
    return x, y


def resampled_frechet(
    fakes: Float[np.ndarray, "n D"], reals: Float[np.ndarray, "n D"], weights: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    """The Fréchet distance of each resample.

    With Σ₁ = AᵀA and Σ₂ = BᵀB, tr((Σ₁Σ₂)^½) is the sum of the singular values of ABᵀ. If n > D, A (n × D) is replaced by the
    triangular factor of its QR decomposition.
    """
    n, D = fakes.shape
    distances = []
    for w in weights.astype(np.float64):
        means, factors = [], []
        for features in (fakes, reals):
            mean = w @ features / n
            A = (features - mean) * np.sqrt(w / (n - 1))[:, None]
            means.append(mean)
            factors.append(A if n <= D else np.asarray(np.linalg.qr(A, mode="r")))
        A, B = factors
        M = A @ B.T
        cross = np.sqrt(np.linalg.eigvalsh(M @ M.T).clip(0)).sum()
        distances.append(((means[0] - means[1]) ** 2).sum() + (A**2).sum() + (B**2).sum() - 2 * cross)
    return np.array(distances)


def precision_recall(
    fakes: Float[np.ndarray, "n D"], reals: Float[np.ndarray, "n D"], weights: Float[np.ndarray, "R n"]
) -> tuple[Estimate, Estimate]:
    """Precision and recall (Kynkäänniemi et al. 2019), by torch-fidelity. Precision is the share of the fakes inside the balls
    around the reals, each of which reaches to the real's third neighbour. Recall swaps fakes and reals.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    x, y = (torch.from_numpy(np.asarray(features, np.float32)) for features in (fakes, reals))
    shares = prc_features_to_metric(x, y, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False)
    w = torch.from_numpy(weights)
    spreads = resampled_share(x, y, w), resampled_share(y, x, w)
    names = (KEY_METRIC_PRECISION, KEY_METRIC_RECALL)
    precision, recall = (
        around(float(shares[name]), spread, len(x), 0.0, 1.0) for name, spread in zip(names, spreads, strict=True)
    )
    return precision, recall


def resampled_share(
    x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], weights: Float[Tensor, "R n"]
) -> Float[np.ndarray, " R"]:
    """The share of x inside the balls around y, for each resample. A ball reaches to the third distinct other row."""
    distances, neighbours = _nearest(y)
    rows, balls, apart = _candidates(x, y, distances[:, -1])
    shares = []
    for w in weights:
        drawn = w > 0
        rank = drawn[neighbours].cumsum(1)
        # If fewer than three of the searched neighbours are in the resample, the ball reaches to the last searched one.
        third = (rank < NEIGHBOURS).sum(1).clamp_max(neighbours.shape[1] - 1)
        radius = distances.gather(1, third[:, None])[:, 0]
        inside = torch.zeros(len(x), dtype=torch.bool)
        inside[rows[drawn[balls] & (apart <= radius[balls])]] = True
        shares.append(float(w[inside].sum() / w.sum()))
    return np.array(shares)


def _nearest(y: Float[Tensor, "n D"]) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the nearest other rows, ascending, and the numbers of these rows."""
    distances, neighbours = [], []
    for start in range(0, len(y), BLOCK):
        block = torch.cdist(y[start : start + BLOCK], y)
        index = torch.arange(len(block))
        block[index, start + index] = torch.inf
        near = block.topk(min(LOOKED_THROUGH, len(y) - 1), largest=False)
        distances.append(near.values)
        neighbours.append(near.indices)
    return torch.cat(distances), torch.cat(neighbours)


def _candidates(
    x: Float[Tensor, "n D"], y: Float[Tensor, "n D"], reach: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """All pairs of a row of x and a row of y whose distance is at most the `reach` of the row of y, with their distances."""
    rows, balls, apart = [], [], []
    for start in range(0, len(x), BLOCK):
        block = torch.cdist(x[start : start + BLOCK], y)
        row, ball = (block <= reach).nonzero(as_tuple=True)
        rows.append(row + start)
        balls.append(ball)
        apart.append(block[row, ball])
    return torch.cat(rows), torch.cat(balls), torch.cat(apart)
