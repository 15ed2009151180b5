"""The sizes of images that a model's networks accept, and the sizes of one area (buckets) among them.

Axes: Y × X pixels, C × H × W the noise map.
"""

import math

from ortho_core.errors import UserError
from ortho_core.framing.frame import Size
from ortho_core.framing.framing import STEPS_A_SIDE, auto_sizes
from ortho_core.framing.image_size import text_of
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder


def needed_step(model: ModelFolder, patches: int) -> int:
    """The number of pixels that divides the sides: for the autoencoder, for what the network need not pad, and for `patches`
    latent pixels (patch size × regions)."""
    factor = model.image_size[0] // model.latent_shape[1]
    return factor * math.lcm(model.adapter.preferred_multiple(model.network_config), patches)


def own_size(model: ModelFolder) -> Size:
    """The size (Y, X) that the model's configurations state."""
    return model.own_size or model.image_size


def own_resolution(model: ModelFolder) -> int:
    """The side of a square with the area of the model's own images."""
    return round(math.sqrt(math.prod(own_size(model))))


def automatic(model: ModelFolder, resolution: int, patches: int) -> tuple[Size, ...]:
    """The sizes of `--buckets auto`: at most resolution² pixels each. Raises UserError if the model has no such sizes."""
    if model.kind == CLASS_KIND:
        raise UserError(
            f"--buckets: {model.path} is class-conditional and makes only {text_of(own_size(model))}; leave it out"
        )
    needed = needed_step(model, patches)
    step = needed * max(1, round(resolution / STEPS_A_SIDE / needed))
    sizes = auto_sizes(resolution, step)
    if not sizes:
        raise UserError(
            f"--resolution {resolution}: sides must be multiples of {needed} pixels; accepted: {needed} or more"
        )
    return sizes


def check_sizes(model: ModelFolder, sizes: tuple[Size, ...], patches: int) -> None:
    """Raises UserError if the autoencoder does not divide a size, or if its noise map cannot be cut into patches and regions."""
    factor = model.image_size[0] // model.latent_shape[1]
    needed = math.lcm(model.size_multiple or 1, factor * patches)
    for size in sizes:
        if any(side % needed for side in size):
            raise UserError(
                f"--buckets {text_of(size)}: both sides must be multiples of {needed}, for the autoencoder's factor {factor} and "
                f"the patch size and regions ({patches})"
            )
        model.at(size)  # a model with one size refuses others
