"""Held-out metrics of a generator: does it reach the targets, and does it still do what the starting model did?

Axes: B images, 3 × Y × X pixels in [0, 1], P prompts, S seeds per prompt, k principal components.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.assign import AssignConfig, Engine, Found, Request, requests_of
from ortho_core.generators.base import OneStepGenerator
from ortho_core.noise import noise_seed
from ortho_core.objectives import Reconstruction, mean_square
from ortho_core.prompts import PromptCache


@dataclass(frozen=True)
class HeldOut:
    """The rows that models are judged on, decoded: none of them was trained on."""

    sample_ids: list[str]
    prompts: list[str]
    images: Float[Tensor, "B 3 Y X"]


@dataclass(frozen=True)
class Evaluation:
    """`metrics` in JSON-ready numbers; pictures as uint8 (B, 3, Y, X), in the order of the held-out rows."""

    metrics: dict[str, Any]
    closest: Tensor
    samples: Tensor


def to_bytes(images: Float[Tensor, "B 3 Y X"]) -> Tensor:
    """Images in [0, 1], clamped and rounded to uint8 on the CPU."""
    return images.clamp(0, 1).mul(255).round().byte().cpu()


def drift(samples: Tensor, base_samples: Tensor) -> dict[str, float]:
    """RMS pixel distance, on the scale [0, 1], of a model's samples from the starting model's at the same noises.

    Both are uint8 (B, 3, Y, X); mean and standard error over images.
    """
    apart = (samples.double() - base_samples.double()) / 255
    return interval(apart.square().flatten(1).mean(1).sqrt().numpy())


@torch.no_grad()
def sample(
    generator: OneStepGenerator, prompts: PromptCache, texts: list[str], seeds: list[int], batch_size: int
) -> Tensor:
    """uint8 images (B, 3, Y, X) of the prompts at the base noises of the seeds: what a user of the model sees."""
    images = []
    for start in range(0, len(texts), batch_size):
        part = slice(start, start + batch_size)
        noise = generator.base_noise(seeds[part])
        images.append(to_bytes(generator.decode(generator.denoise(noise, prompts(texts[part])))))
    return torch.cat(images)


def interval(values: Float[np.ndarray, " B"]) -> dict[str, float]:
    """Mean and its standard error over images."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "standard_error": error}


def frechet_distance(
    real: Float[np.ndarray, "n features"], fake: Float[np.ndarray, "m features"], components: int = 32
) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) in the leading principal components of `real` (Dowson & Landau 1982).

    The formula of FID on pixels instead of Inception features: right for small pictures of one kind, where it needs no
    network; not comparable with published FIDs.
    """
    mean = real.mean(0)
    _, _, axes = np.linalg.svd(real - mean, full_matrices=False)
    a, b = ((x - mean) @ axes[:components].T for x in (real, fake))
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    # tr((ΣₐΣ_b)^½) through the symmetric √Σₐ Σ_b √Σₐ, which has the same eigenvalues.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def mean_pairwise_distance(images: Tensor) -> float:
    """Mean root-mean-square pixel distance over all pairs of images (S, 3, Y, X) uint8, on the scale [0, 1]."""
    flat = images.flatten(1).double() / 255
    return float(torch.pdist(flat).mean() / np.sqrt(flat.shape[1]))


def _requests(
    generator: OneStepGenerator,
    prompts: PromptCache,
    heldout: HeldOut,
    config: AssignConfig,
    seeds: list[int],
    batch_size: int,
) -> Iterator[Request]:
    objective = Reconstruction(generator, config)
    for start in range(0, len(heldout.prompts), batch_size):
        part = slice(start, start + batch_size)
        images = heldout.images[part].to(generator.device)
        with torch.no_grad():
            targets = generator.encode_images(images)
        inputs = objective.inputs(prompts(heldout.prompts[part]), targets, images)
        yield from requests_of(range(len(seeds))[part], seeds[part], inputs)


def _index(found: Found) -> int:
    return int(found.key)


def evaluate(
    generator: OneStepGenerator,
    heldout: HeldOut,
    config: AssignConfig,
    *,
    seed: int,
    batch_size: int,
) -> Evaluation:
    """Judge one model.

    Reconstruction: latent MSE and PSNR (dB) of the closest image at newly assigned noise. At random noise: `frechet`, see
    `frechet_distance`, to the held-out images; `diversity`, the mean pairwise RMS distance
    of one prompt's samples. How far a model moved from another is `drift` of the samples of both.
    """
    prompts = PromptCache(generator)
    seeds = [noise_seed(seed, name) for name in heldout.sample_ids]
    engine = Engine(generator, config, batch_size)
    found = sorted(engine.run(_requests(generator, prompts, heldout, config, seeds, batch_size)), key=_index)
    closest, latent, psnr = [], [], []
    for start in range(0, len(heldout.prompts), batch_size):
        part = slice(start, start + batch_size)
        images = heldout.images[part].to(generator.device)
        parameters = torch.stack([one.parameters for one in found[part]]).to(generator.device)
        with torch.no_grad():
            noise = engine.space.noise(generator.base_noise(seeds[part]), parameters)
            latents = generator.denoise(noise, prompts(heldout.prompts[part]))
            pictures = generator.decode(latents).clamp(0, 1)
            targets = generator.encode_images(images)
        closest.append(to_bytes(pictures))
        latent.append(mean_square(latents, targets).cpu().numpy())
        psnr.append(-10 * np.log10(mean_square(pictures, images).cpu().numpy().clip(1e-10)))
    fresh = [noise_seed(seed, "evaluate", name) for name in heldout.sample_ids]
    samples = sample(generator, prompts, heldout.prompts, fresh, batch_size)
    pixels = samples.flatten(1).double().numpy() / 255
    real = heldout.images.flatten(1).double().numpy()
    few = list(dict.fromkeys(heldout.prompts))[:8]
    seeds = [noise_seed(seed, "diversity", i) for i in range(8)]
    spread = [mean_pairwise_distance(sample(generator, prompts, [p] * 8, seeds, batch_size)) for p in few]
    metrics: dict[str, Any] = {
        "rows": len(heldout.prompts),
        "evaluations_per_image": config.steps,
        "latent_mse": interval(np.concatenate(latent)),
        "psnr": interval(np.concatenate(psnr)),
        "frechet": frechet_distance(real, pixels),
        "diversity": interval(np.array(spread)),
    }
    return Evaluation(metrics, torch.cat(closest), samples)
