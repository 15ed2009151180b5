"""The objective of a search: the protocol, and the reconstruction of an image.

Axes: B images, C × H × W the noise map and the latent, 3 × Y × X the image.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.estep.config import ReconstructionWeights
from ortho_core.generators.protocol import Condition, OneStepGenerator
from ortho_core.losses import mean_absolute, mean_square


@runtime_checkable
class Objective(Protocol):
    """The loss that a search minimises for each image. The engine calls it with one row per slot."""

    #: Names of the terms that a call returns besides `total`.
    parts: tuple[str, ...]

    def __call__(self, noise: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`total` and the terms that it consists of, each (B,), for noise (B, C, H, W) and the images' `inputs`."""
        ...

    def blank_inputs(self, count: int) -> dict[str, Tensor]:
        """Inputs of `count` rows, with the right shapes and arbitrary content: to measure time and memory."""
        ...


class Reconstruction:
    """w_lat·mean((f(ε̂,c) - E(x))²) + w_pix·mean|D(f(ε̂,c)) - x|: how closely the generator maps ε̂ to the image x.

    Inputs: the condition's tensors, `target` = E(x), and `image` = x in [0, 1], needed when the pixel weight is not 0.
    """

    parts: tuple[str, ...] = ("latent", "pixel")

    def __init__(self, generator: OneStepGenerator, weights: ReconstructionWeights) -> None:
        self.generator, self.weights = generator, weights

    def inputs(
        self, condition: Condition, targets: Float[Tensor, "B ..."], images: Float[Tensor, "B 3 Y X"] | None
    ) -> dict[str, Tensor]:
        """The inputs of B images, all on the generator's device. Raises ValueError if the pixel term has no `images`."""
        inputs = {f"condition.{name}": tensor for name, tensor in condition.tensors.items()} | {"target": targets}
        if self.weights.pixel_l1_weight:
            if images is None:
                raise ValueError("the pixel term needs the target images")
            inputs["image"] = images
        return inputs

    @torch.no_grad()
    def blank_inputs(self, count: int) -> dict[str, Tensor]:
        generator = self.generator
        images = torch.zeros(count, 3, *generator.image_size, device=generator.device)
        return self.inputs(generator.encode_prompts([""] * count), generator.encode_images(images), images)

    def __call__(self, noise: Float[Tensor, "B C H W"], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        prefix = "condition."
        condition = Condition({k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)})
        latents = self.generator.denoise(noise, condition)
        latent = mean_square(latents, inputs["target"])
        pixel = latent.new_zeros(latent.shape)
        if self.weights.pixel_l1_weight:
            pixel = mean_absolute(self.generator.decode(latents), inputs["image"])
        total = self.weights.latent_loss_weight * latent + self.weights.pixel_l1_weight * pixel
        return {"total": total, "latent": latent, "pixel": pixel}
