"""uint8 images, as a viewer sees them: generated, compared, stored as PNG.

Axes: B images, 3 × Y × X pixels, S images of one prompt.
"""

import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.framing.frame import Frame
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.pictures import to_bytes, to_picture


@torch.no_grad()
def sample(
    generator: OneStepGenerator,
    prompts: PromptCache,
    texts: list[str],
    seeds: list[int],
    at_once: AtOnce | int,
) -> Tensor:
    """uint8 images (B, 3, Y, X) of the prompts at the base noises of the seeds, as a user of the model sees them."""

    def made(part: slice) -> Tensor:
        noise = generator.base_noise(seeds[part])
        # The prompts may be encoded by a generator of another size.
        condition = prompts(texts[part]).framed([Frame.plain(generator.image_size)] * len(noise))
        return to_bytes(generator.decode(generator.denoise(noise, condition)))

    parts = AtOnce(at_once) if isinstance(at_once, int) else at_once
    return torch.cat(parts(len(texts), made))


def rms_distance(images: Tensor, others: Tensor) -> Float[np.ndarray, " B"]:
    """Root-mean-square pixel distance, on the scale [0, 1], between each of B uint8 images and its partner in `others`."""
    apart = (images.double() - others.double()) / 255
    return apart.square().flatten(1).mean(1).sqrt().numpy()


def mean_pairwise_distance(images: Tensor) -> float:
    """Mean root-mean-square pixel distance over all pairs of images (S, 3, Y, X) uint8, on the scale [0, 1]."""
    flat = images.flatten(1).double() / 255
    return float(torch.pdist(flat).mean() / np.sqrt(flat.shape[1]))


def laplacian_energy(image: UInt8[Tensor, "3 Y X"]) -> float:
    """Mean square of the luminance's Laplacian over the inner pixels of one image, on the scale [0, 1].

    This is the focus measure "energy of Laplacian" (Pertuz et al. 2013), with the four-neighbour Laplacian and the luminance of
    BT.601. NaN for an image with a side below 3 pixels, which has no inner pixels.
    """
    # Integers, in thousandths of a grey level: flat images and linear ramps have exactly 0.
    red, green, blue = image.int()
    luma = 299 * red + 587 * green + 114 * blue
    neighbours = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    laplacian = (neighbours - 4 * luma[1:-1, 1:-1]).double() / 255_000
    return float(laplacian.square().mean())


def to_png(image: Tensor) -> bytes:
    """A uint8 image (3, Y, X) as the content of a PNG file."""
    buffer = io.BytesIO()
    to_picture(image).save(buffer, format="PNG")
    return buffer.getvalue()


def from_png(content: bytes) -> Tensor:
    """The image (3, Y, X) that `to_png` wrote."""
    with Image.open(io.BytesIO(content)) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
