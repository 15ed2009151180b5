"""Which directions in noise a generator answers to most: measured once per model, used as every image's first curvature.

The images of a one-step generator can hang on a few directions of their noise far more than on the rest: tiny-turbo answers
to one of 256 more than a hundred times as strongly as to the mean one. An optimiser that starts from a multiple of the
identity spends its first evaluations finding that out for every image anew. With J the Jacobian of f at a random noise,
E[JᵀJ] is measured from J's products with random cotangents; its leading eigenvectors make a low-rank model of the loss's
Hessian (Gauss-Newton), which `CurvatureModel` inverts.

Axes: B images, C × H × W noise maps, n coordinates, k directions, S samples.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ortho_core.estep.config import MEASURED_WITH
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.coordinates import Coordinates
from ortho_core.noise.seeded import noise_seed, seeded_normal


@dataclass(frozen=True)
class Sensitivity:
    """E[JᵀJ] ≈ Σ_k strength_k·u_k u_kᵀ + floor·I, the `u` orthonormal."""

    directions: Float[Tensor, "k C H W"]
    strength: Float[Tensor, " k"]
    floor: float


def measure(generator: OneStepGenerator, rank: int, batch_size: int, samples: int = MEASURED_WITH) -> Sensitivity:
    """Estimate from `samples` evaluations at fixed seeds and the empty prompt: the same numbers in every worker.

    With v ~ N(0, I), E[(Jᵀv)(Jᵀv)ᵀ] = E[JᵀJ].
    """
    condition = generator.encode_prompts([""] * batch_size)
    products = []
    for start in range(0, samples, batch_size):
        seeds = [noise_seed(0, "sensitivity", start + i) for i in range(batch_size)]
        noise = generator.base_noise(seeds).requires_grad_(True)
        with torch.enable_grad():
            output = generator.denoise(noise, condition)
            cotangent = seeded_normal([seed + 1 for seed in seeds], tuple(output.shape[1:])).to(output)
            (product,) = torch.autograd.grad(output, noise, cotangent)
        products.append(product.detach().cpu().double())
    # The last batch may be larger than what is left of the samples: which ones count must not hang on the batch size.
    G = torch.cat(products)[:samples].flatten(1)
    S, n = G.shape
    # The Gram matrix is S × S however large the noise map is.
    values, vectors = torch.linalg.eigh(G @ G.mT / S)
    rank = min(rank, S, n)
    strength = values[-rank:].clamp_min(1e-30)
    directions = (vectors[:, -rank:].mT @ G) / (strength * S).sqrt()[:, None]
    C, H, W = generator.latent_shape
    return Sensitivity(
        directions.reshape(rank, C, H, W).float().to(generator.device),
        strength.float().to(generator.device),
        float(values.sum() / n),
    )


class CurvatureModel:
    """(Σ_k strength_k·r_k r_kᵀ + λI)⁻¹ up to a factor, per image, with r_k the directions seen from its coordinates.

    λ is the mean sensitivity of a coordinate. By the Woodbury identity it costs k × k inverses. One row per slot.
    """

    def __init__(self, sensitivity: Sensitivity, coordinates: Coordinates, slots: int) -> None:
        k = len(sensitivity.strength)
        self.sensitivity, self.coordinates = sensitivity, coordinates
        self.r = sensitivity.strength.new_zeros(slots, coordinates.count, k)
        self.inner = sensitivity.strength.new_zeros(slots, k, k)

    def reset(self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"]) -> None:
        """Compute the rows of images that have entered `slots`."""
        r = self.coordinates.pull_back(slots, base, self.sensitivity.directions)
        # The squared length that a unit step in one coordinate moves the noise, on average: numbers of a map over reach².
        floor = self.sensitivity.floor * base[0].numel() / self.coordinates.reach**2
        inner = torch.diag(floor / self.sensitivity.strength) + r.mT @ r
        self.r[slots] = r
        self.inner[slots] = torch.linalg.inv_ex(inner, check_errors=False).inverse

    def __call__(self, vectors: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        inside = torch.einsum("bnk,bn->bk", self.r, vectors)
        return vectors - torch.einsum("bnk,bkl,bl->bn", self.r, self.inner, inside)
