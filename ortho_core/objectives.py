"""The losses of both steps, one value per image, so that no image's result depends on its neighbours.

Axes: B images, C × H × W latents, 3 × Y × X images.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ortho_core.generators.base import Condition, OneStepGenerator


class ReconstructionWeights(BaseModel):
    """Weights of the reconstruction terms; a term of weight 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_loss_weight: float = Field(1.0, ge=0, description="weight of mean((f(Qε,c) - E(x))²), in latent units")
    pixel_l1_weight: float = Field(0.0, ge=0, description="weight of mean|D(f(Qε,c)) - x|, images in [0, 1]; decodes")


def mean_square(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean((a - b)²) over all but the first axis."""
    return (a - b).square().flatten(1).mean(1)


def mean_absolute(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """mean|a - b| over all but the first axis."""
    return (a - b).abs().flatten(1).mean(1)


@runtime_checkable
class Objective(Protocol):
    """What the noise of each image is chosen for. Called by the engine with one row per slot."""

    #: Names of the parts that a call returns beside `total`.
    parts: tuple[str, ...]

    def __call__(self, noise: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`total` and the parts it is made of, each (B,), for noise (B, C, H, W) and the images' `inputs`."""
        ...

    def blank_inputs(self, count: int) -> dict[str, Tensor]:
        """Inputs of so many rows, of the right shapes and no content: for measuring time and memory."""
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
        """The inputs of B images, all on the generator's device; images only where they are needed."""
        found = {f"condition.{name}": tensor for name, tensor in condition.tensors.items()} | {"target": targets}
        if self.weights.pixel_l1_weight:
            if images is None:
                raise ValueError("the pixel term needs the target images")
            found["image"] = images
        return found

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
