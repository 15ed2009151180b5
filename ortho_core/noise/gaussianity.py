"""How Gaussian a set of noise maps is: statistics of its patches, compared with their values for N(0, I).

For a *fixed* orthogonal Q the distribution of Qε is exactly N(0, I). A Q that depends on the image and the noise keeps the norm
of every patch, but not independence. So a pooled set of assigned noises departs from N(0, I); these numbers measure by how much.
Noise that is not a rotation does not even keep the norms.

Axes: B maps, N patches per map, d patch dimension, n = B·N patches in all.
"""

import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.noise.prior import lagged_product
from ortho_core.noise.rotation import block_dimension, cayley, patchify, unpack_skew, unpatchify

#: Quantile of the Kolmogorov distribution: √n·D is below it for 95 % of true samples (large n).
KOLMOGOROV_95 = 1.3581


def normal_cdf(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Φ(x)."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def ks_distance(values: Float[Tensor, " n"], cdf: Float[Tensor, " n"]) -> float:
    """D = sup|F_n - F| (Kolmogorov 1933), given F at the sorted `values`."""
    n = len(values)
    above = torch.arange(1, n + 1, dtype=cdf.dtype) / n - cdf
    below = cdf - torch.arange(0, n, dtype=cdf.dtype) / n
    return float(torch.maximum(above, below).max())


#: Spatial shifts (rows, columns) whose autocorrelation is reported.
REPORTED_LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, 3), (3, 0))


@dataclass(frozen=True)
class KsTest:
    """A Kolmogorov-Smirnov distance, and the 95 % quantile of its values for true samples."""

    ks: float
    null_95: float

    @property
    def departure(self) -> float:
        """The distance in units of its 95 % quantile."""
        return self.ks / self.null_95


@dataclass(frozen=True)
class Correlation:
    """A mean product, which is 0 under N(0, I), and its null standard deviation."""

    correlation: float
    null_std: float

    @property
    def departure(self) -> float:
        """The absolute correlation in null standard deviations."""
        return abs(self.correlation) / self.null_std


@dataclass(frozen=True)
class Covariance:
    """Eigenvalues of the patches' covariance, and Marchenko-Pastur's range (1 ± √(d/n))²."""

    eigenvalues: list[float]
    marchenko_pastur: tuple[float, float]


@dataclass(frozen=True)
class Position:
    """√B times the mean over maps at each position of the map, squared and averaged.

    1 for independent maps; more where the maps of a pooled set have the same sign at a position.
    """

    mean_square: float
    null_std: float


@dataclass(frozen=True)
class PerMap:
    """Mean squares of the maps (1 for Gaussian maps), and the share of maps whose marginal exceeds its 95 % quantile."""

    mean_square: float
    lowest: float
    highest: float
    null_std: float
    marginal_over_null_95: float


@dataclass(frozen=True)
class NoiseStatistics:
    """Statistics of the maps' patches, each with its value or standard deviation under N(0, I)."""

    maps: int
    patch_size: int
    #: n and d.
    patches: int
    dimension: int
    mean: float
    mean_null_std: float
    variance: float
    variance_null_std: float
    #: For each of the d entries of a patch, over all patches.
    dimension_mean: list[float]
    dimension_mean_null_std: float
    dimension_variance: list[float]
    dimension_variance_null_std: float
    #: KS tests of all entries against N(0, 1), and of the squared patch norms against chi²(d).
    marginal: KsTest
    patch_norm: KsTest
    covariance: Covariance
    #: By shift `rows,columns`: correlation of latent pixels within a channel.
    autocorrelation: dict[str, Correlation]
    #: Correlation of an entry with the same entry of the next patch.
    cross_patch: Correlation
    position: Position
    per_map: PerMap


def noise_statistics(noise: Float[Tensor, "B C H W"], patch_size: int) -> NoiseStatistics:
    """The statistics of noise maps on any device and of any dtype, computed in float64."""
    noise = noise.detach().cpu().double()
    B, C, H, W = noise.shape
    patches = patchify(noise, patch_size)
    N, d = patches.shape[1:]
    flat = patches.reshape(-1, d)
    n, numbers = len(flat), noise.numel()
    squares = flat.square().sum(1).sort().values
    chi2 = torch.special.gammainc(torch.full_like(squares, d / 2), squares / 2)
    centred = flat - flat.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.mT @ centred / max(n - 1, 1))
    edge = math.sqrt(d / n)
    variance = flat.var(0) if n > 1 else torch.zeros(d)
    cross = (patches[:, 1:] * patches[:, :-1]).mean() if N > 1 else torch.zeros(())
    marginals = [_marginal(each.flatten()) for each in noise]
    power = noise.square().mean((1, 2, 3))
    return NoiseStatistics(
        maps=B,
        patch_size=patch_size,
        patches=n,
        dimension=d,
        mean=float(noise.mean()),
        mean_null_std=1 / math.sqrt(numbers),
        variance=float(noise.var()),
        variance_null_std=math.sqrt(2 / numbers),
        dimension_mean=[float(m) for m in flat.mean(0)],
        dimension_mean_null_std=1 / math.sqrt(n),
        dimension_variance=[float(v) for v in variance],
        dimension_variance_null_std=math.sqrt(2 / n),
        marginal=_marginal(noise.flatten()),
        patch_norm=KsTest(ks_distance(squares, chi2), KOLMOGOROV_95 / math.sqrt(n)),
        covariance=Covariance([float(e) for e in eigenvalues], (max(0.0, 1 - edge) ** 2, (1 + edge) ** 2)),
        autocorrelation={
            f"{dy},{dx}": _autocorrelation(noise, dy, dx) for dy, dx in REPORTED_LAGS if dy < H and abs(dx) < W
        },
        cross_patch=Correlation(float(cross), 1 / math.sqrt(B * max(N - 1, 1) * d)),
        position=Position(float(B * noise.mean(0).square().mean()), math.sqrt(2 / (C * H * W))),
        per_map=PerMap(
            mean_square=float(power.mean()),
            lowest=float(power.min()),
            highest=float(power.max()),
            null_std=math.sqrt(2 / (C * H * W)),
            marginal_over_null_95=sum(test.ks > test.null_95 for test in marginals) / B,
        ),
    )


def _marginal(entries: Float[Tensor, " n"]) -> KsTest:
    ordered = entries.sort().values
    return KsTest(ks_distance(ordered, normal_cdf(ordered)), KOLMOGOROV_95 / math.sqrt(len(entries)))


def _autocorrelation(noise: Float[Tensor, "B C H W"], dy: int, dx: int) -> Correlation:
    product = lagged_product(noise, dy, dx)
    return Correlation(float(product.mean()), 1 / math.sqrt(product.numel()))


def departures(statistics: NoiseStatistics) -> dict[str, float]:
    """How far each statistic is from N(0, I), in its null standard deviations (KS: in 95 % quantiles), largest first.

    For a statistic of several numbers it is the largest of their distances. Under N(0, I) that is about √(2·log count), not 1.
    """
    s = statistics
    distances = {
        "mean": abs(s.mean) / s.mean_null_std,
        "variance": abs(s.variance - 1) / s.variance_null_std,
        "mean of a patch entry": max(abs(m) for m in s.dimension_mean) / s.dimension_mean_null_std,
        "variance of a patch entry": max(abs(v - 1) for v in s.dimension_variance) / s.dimension_variance_null_std,
        "marginal (KS)": s.marginal.departure,
        "patch norms (KS)": s.patch_norm.departure,
        "cross-patch correlation": s.cross_patch.departure,
        "mean at a position of the map": abs(s.position.mean_square - 1) / s.position.null_std,
        "power of the maps": abs(s.per_map.mean_square - 1) / s.per_map.null_std * math.sqrt(s.maps),
    }
    if s.autocorrelation:
        distances["spatial autocorrelation"] = max(c.departure for c in s.autocorrelation.values())
    return dict(sorted(distances.items(), key=lambda item: -item[1]))


def verdict(statistics: NoiseStatistics) -> str:
    """One sentence: no notable departure from N(0, I), or the largest departures."""
    far = {name: value for name, value in departures(statistics).items() if value > NOTABLE}
    maps = f"{statistics.maps} maps"
    if not far:
        return f"{maps}: no departure from N(0, I) beyond {NOTABLE:g} null standard deviations"
    worst = ", ".join(f"{name} by {value:.1f}" for name, value in list(far.items())[:3])
    return f"{maps} depart from N(0, I), in null standard deviations: {worst}"


def in_words(statistics: NoiseStatistics) -> str:
    """The same in plain words, with the consequence for training."""
    name, value = next(iter(departures(statistics).items()))
    if value <= NOTABLE:
        return f"all {statistics.maps} noise maps together look Gaussian: no statistic departs notably"
    return (
        f"all {statistics.maps} noise maps together are not quite Gaussian; the largest departure is the {name}. This is usual, "
        "because each noise was chosen for its image; training subtracts their common mean"
    )


#: Departures above this many null standard deviations are named; even the largest of many true statistics is below it.
NOTABLE = 4.0


def random_rotation(noise: Float[Tensor, "B C H W"], patch_size: int, generator: torch.Generator) -> Tensor:
    """Rotate each map by its own random Q, the Cayley map of a standard normal skew matrix (far from I)."""
    B, C, H, W = noise.shape
    d = block_dimension((C, H, W), patch_size)
    skew = torch.randn(B, d * (d - 1) // 2, generator=generator, dtype=torch.float64)
    Q = cayley(unpack_skew(skew, d))
    return unpatchify(patchify(noise.double(), patch_size) @ Q.mT, patch_size, (C, H, W))


def plot_statistics(
    noise: Float[Tensor, "B C H W"], patch_size: int, title: str, path: Path | io.BytesIO
) -> NoiseStatistics:
    """Plot the statistics and their theoretical values as a PNG; returns the statistics."""
    from matplotlib.figure import Figure

    statistics = noise_statistics(noise, patch_size)
    patches = patchify(noise.cpu().double(), patch_size).reshape(-1, statistics.dimension)
    d = statistics.dimension
    figure = Figure(figsize=(15, 6.6), layout="constrained")
    (marginal, norms, spectrum, position), (means, variances, correlations, power) = figure.subplots(2, 4)
    marginal.hist(patches.flatten().numpy(), bins=60, density=True, color=BARS)
    x = np.linspace(-4, 4, 200)
    marginal.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color=NULL, label="N(0, 1)")
    marginal.set(title=f"entries, KS {statistics.marginal.ks:.4f} (95 %: {statistics.marginal.null_95:.4f})")
    radius = patches.norm(dim=1).numpy()
    norms.hist(radius, bins=40, density=True, color=BARS)
    r = np.linspace(max(radius.min() * 0.9, 1e-6), radius.max() * 1.1, 200)
    log_density = (d - 1) * np.log(r) - r**2 / 2 - (d / 2 - 1) * math.log(2) - math.lgamma(d / 2)
    norms.plot(r, np.exp(log_density), color=NULL, label=f"chi({d})")
    norms.set(title=f"patch norms, KS {statistics.patch_norm.ks:.4f} (95 %: {statistics.patch_norm.null_95:.4f})")
    low, high = statistics.covariance.marchenko_pastur
    spectrum.plot(statistics.covariance.eigenvalues, "o", ms=3, color=DOTS)
    spectrum.axhspan(low, high, color=NULL, alpha=0.15, label="Marchenko-Pastur range")
    spectrum.set(title="eigenvalues of the patch covariance")
    for axes, name, centre, values, null_std in (
        (means, "mean", 0, statistics.dimension_mean, statistics.dimension_mean_null_std),
        (variances, "variance", 1, statistics.dimension_variance, statistics.dimension_variance_null_std),
    ):
        spread = 2 * null_std
        axes.plot(values, "o", ms=3, color=DOTS)
        axes.axhspan(centre - spread, centre + spread, color=NULL, alpha=0.15, label="two null standard deviations")
        axes.set(title=f"{name} of each patch entry")
    rows = {f"lag {lag}": c for lag, c in statistics.autocorrelation.items()}
    rows["next patch"] = statistics.cross_patch
    correlations.errorbar(
        range(len(rows)),
        [c.correlation for c in rows.values()],
        yerr=[2 * c.null_std for c in rows.values()],
        fmt="o",
        ms=3,
        color=DOTS,
        ecolor=NULL,
        label="two null standard deviations",
    )
    correlations.axhline(0, color="#888888", lw=0.8)
    correlations.set_xticks(range(len(rows)), list(rows), rotation=60, fontsize=7)
    correlations.set(title="correlations")
    maps = noise.detach().cpu().double()
    pooled = maps.mean(0).flatten() * math.sqrt(len(maps))
    position.hist(pooled.numpy(), bins=40, density=True, color=BARS)
    position.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color=NULL, label="N(0, 1)")
    position.set(title=f"√{len(maps)} · mean over maps, each position")
    each = maps.square().mean((1, 2, 3))
    power.hist(each.numpy(), bins=min(40, max(5, len(each) // 4)), density=True, color=BARS)
    spread = statistics.per_map.null_std
    around = 1 + spread * np.linspace(-4, 4, 200)
    density = np.exp(-(((around - 1) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
    power.plot(around, density, color=NULL, label="N(0, I), n large")
    power.set(title="mean square of each map")
    for axes in figure.axes:
        axes.legend(fontsize=8)
        axes.title.set_fontsize(10)
    figure.suptitle(f"{title}: {verdict(statistics)}", fontsize=10)
    figure.savefig(path, dpi=110)
    return statistics


BARS, DOTS, NULL = "#8fb8de", "#2c6fad", "#c0392b"


def diagnostics(
    noise: Float[Tensor, "B C H W"], patch_size: int, title: str
) -> tuple[NoiseStatistics, dict[str, bytes]]:
    """The statistics, and two files with them by suffix: `.json`, and `.png` with a plot."""
    drawing = io.BytesIO()
    statistics = plot_statistics(noise, patch_size, title, drawing)
    content = {**asdict(statistics), "departures": departures(statistics), "verdict": verdict(statistics)}
    return statistics, {".json": f"{json.dumps(content, indent=1)}\n".encode(), ".png": drawing.getvalue()}
