"""Sensitivity: the noise directions that change a generator's output most. Measured once per model; each search starts from it.

The output of a one-step generator can depend far more on a few noise directions than on the others. The output of tiny-turbo
is more than a hundred times as sensitive to one of its 256 directions as to the mean direction. An optimiser that starts from
a multiple of the identity has to discover this for every image, in its first evaluations. Let J be the Jacobian of f at a
random noise. E[JᵀJ] is measured from products of J with random cotangents. Its leading eigenvectors give a low-rank
Gauss-Newton model of the loss's Hessian, which `CurvatureModel` inverts.

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
    """Estimate the sensitivity from `samples` evaluations at fixed seeds and the empty prompt: the same in every worker.

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
    # The last batch may go beyond `samples`: the samples used must not depend on the batch size.
    G = torch.cat(products)[:samples].flatten(1)
    S, n = G.shape
    # The Gram matrix is S × S for any size of the noise map.
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
    """(Σ_k strength_k·r_k r_kᵀ + λI)⁻¹ up to a factor, per image. r_k are the directions in the image's coordinates.

    λ is the mean sensitivity of a coordinate. The Woodbury identity reduces the inverse to k × k. One row per slot.
    """

    def __init__(self, sensitivity: Sensitivity, coordinates: Coordinates, slots: int) -> None:
        k = len(sensitivity.strength)
        self.sensitivity, self.coordinates = sensitivity, coordinates
        self.r = sensitivity.strength.new_zeros(slots, coordinates.count, k)
        self.inner = sensitivity.strength.new_zeros(slots, k, k)

    def reset(self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"]) -> None:
        """Compute the rows of the images that entered `slots`."""
        r = self.coordinates.pull_back(slots, base, self.sensitivity.directions)
        # A unit step in one coordinate moves the noise by this squared length on average: C·H·W / reach².
        floor = self.sensitivity.floor * base[0].numel() / self.coordinates.reach**2
        inner = torch.diag(floor / self.sensitivity.strength) + r.mT @ r
        self.r[slots] = r
        self.inner[slots] = torch.linalg.inv_ex(inner, check_errors=False).inverse

    def __call__(self, vectors: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        inside = torch.einsum("bnk,bn->bk", self.r, vectors)
        return vectors - torch.einsum("bnk,bkl,bl->bn", self.r, self.inner, inside)
