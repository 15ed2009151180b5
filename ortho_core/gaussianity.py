"""How Gaussian a set of noise maps is: statistics of its patches against what N(0, I) would give.

For a *fixed* orthogonal Q the law of Qε is exactly N(0, I). A Q chosen from the image and the noise keeps every patch's
norm and its orbit under rotation, but not independence; these numbers say by how much a set departs.

Axes: B maps, N patches per map, d patch dimension, n = B·N patches in all.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.transform import block_dimension, cayley, patchify, unpack_skew, unpatchify

#: Quantile of the Kolmogorov distribution: √n·D stays below it for 95 % of true samples (n large).
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


def noise_statistics(noise: Float[Tensor, "B C H W"], patch_size: int) -> dict[str, Any]:
    """Statistics of the maps' patches, each with what N(0, I) would give, as JSON-ready numbers.

    `marginal`: KS distance of all entries to N(0, 1) and its 95 % null quantile; `patch_norm`: KS distance of the squared
    norms to chi²(d); `covariance`: eigenvalue range against Marchenko-Pastur's (1 ± √(d/n))²; `spatial`: correlation of
    neighbouring latent pixels; `cross_patch`: correlation of an entry with the same entry of the next patch. Correlations
    come with their null standard deviation.
    """
    noise = noise.detach().double().cpu()
    B, C, H, W = noise.shape
    patches = patchify(noise, patch_size)
    N, d = patches.shape[1:]
    flat = patches.reshape(-1, d)
    n = len(flat)
    entries = noise.flatten().sort().values
    squares = flat.square().sum(1).sort().values
    chi2 = torch.special.gammainc(torch.full_like(squares, d / 2), squares / 2)
    centred = flat - flat.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.mT @ centred / max(n - 1, 1))
    edge = math.sqrt(d / n)
    variance = flat.var(0) if n > 1 else torch.zeros(d)
    horizontal = (noise[..., 1:] * noise[..., :-1]).mean() if W > 1 else torch.zeros(())
    vertical = (noise[:, :, 1:] * noise[:, :, :-1]).mean() if H > 1 else torch.zeros(())
    cross = (patches[:, 1:] * patches[:, :-1]).mean() if N > 1 else torch.zeros(())
    return {
        "maps": B,
        "patch_size": patch_size,
        "patches": n,
        "dimension": d,
        "mean": float(noise.mean()),
        "mean_null_std": 1 / math.sqrt(noise.numel()),
        "variance": float(noise.var()),
        "variance_null_std": math.sqrt(2 / noise.numel()),
        "largest_dimension_mean": float(flat.mean(0).abs().max()),
        "dimension_mean_null_std": 1 / math.sqrt(n),
        "dimension_variance_range": [float(variance.min()), float(variance.max())],
        "dimension_variance_null_std": math.sqrt(2 / n),
        "marginal": {
            "ks": ks_distance(entries, normal_cdf(entries)),
            "null_95": KOLMOGOROV_95 / math.sqrt(len(entries)),
        },
        "patch_norm": {"ks": ks_distance(squares, chi2), "null_95": KOLMOGOROV_95 / math.sqrt(n)},
        "covariance": {
            "eigenvalues": [float(e) for e in eigenvalues],
            "marchenko_pastur": [max(0.0, 1 - edge) ** 2, (1 + edge) ** 2],
        },
        "spatial": {
            "horizontal": float(horizontal),
            "vertical": float(vertical),
            "null_std": 1 / math.sqrt(B * C * H * max(W - 1, 1)),
        },
        "cross_patch": {"correlation": float(cross), "null_std": 1 / math.sqrt(B * max(N - 1, 1) * d)},
    }


def random_rotation(noise: Float[Tensor, "B C H W"], patch_size: int, generator: torch.Generator) -> Tensor:
    """Rotate each map by a random Q of its own, Q the Cayley map of a standard normal skew matrix (far from I)."""
    B, C, H, W = noise.shape
    d = block_dimension((C, H, W), patch_size)
    skew = torch.randn(B, d * (d - 1) // 2, generator=generator, dtype=torch.float64)
    Q = cayley(unpack_skew(skew, d))
    return unpatchify(patchify(noise.double(), patch_size) @ Q.mT, patch_size, (C, H, W))


def plot_statistics(noise: Float[Tensor, "B C H W"], patch_size: int, title: str, path: Path) -> None:
    """Draw marginal, patch norms and covariance spectrum against their theory, as a PNG."""
    from matplotlib.figure import Figure

    statistics = noise_statistics(noise, patch_size)
    patches = patchify(noise.double().cpu(), patch_size).reshape(-1, statistics["dimension"])
    d = statistics["dimension"]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    marginal, norms, spectrum = figure.subplots(1, 3)
    marginal.hist(patches.flatten().numpy(), bins=60, density=True, color="#8fb8de")
    x = np.linspace(-4, 4, 200)
    marginal.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color="#c0392b", label="N(0, 1)")
    marginal.set(
        title=f"entries, KS {statistics['marginal']['ks']:.4f} (95 %: {statistics['marginal']['null_95']:.4f})"
    )
    radius = patches.norm(dim=1).numpy()
    norms.hist(radius, bins=40, density=True, color="#8fb8de")
    r = np.linspace(max(radius.min() * 0.9, 1e-6), radius.max() * 1.1, 200)
    log_density = (d - 1) * np.log(r) - r**2 / 2 - (d / 2 - 1) * math.log(2) - math.lgamma(d / 2)
    norms.plot(r, np.exp(log_density), color="#c0392b", label=f"chi({d})")
    norms.set(title="patch norms")
    low, high = statistics["covariance"]["marchenko_pastur"]
    spectrum.plot(statistics["covariance"]["eigenvalues"], "o", ms=3, color="#2c6fad")
    spectrum.axhspan(low, high, color="#c0392b", alpha=0.15, label="Marchenko-Pastur range")
    spectrum.set(title="covariance eigenvalues")
    for axes in (marginal, norms, spectrum):
        axes.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
