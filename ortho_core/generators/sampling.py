"""Images of a generator, and its network at rest while nothing trains.

Axes: B images, C × H × W the noise map, 3 × Y × X the image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.errors import UserError
from ortho_core.generators.base import check_generator
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator


@contextmanager
def at_rest(generator: OneStepGenerator) -> Iterator[None]:
    """Inside, the network computes without dropout and no weight takes a gradient; afterwards all is as it was."""
    modules = [module for module in generator.trainable.modules() if module.training]
    trained = [p for p in generator.trainable.parameters() if p.requires_grad]
    generator.trainable.eval()
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        for module in modules:
            module.training = True


def seed_list(seeds: int | Sequence[int] | Tensor) -> list[int]:
    """One seed or several as a list. Raises UserError for what no seed can be."""
    several = [seeds] if isinstance(seeds, int) else seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    wrong = [seed for seed in several if not (hasattr(seed, "__index__") and 0 <= seed < 2**63)]
    if wrong:
        raise UserError(f"seed {wrong[0]!r}: accepted are whole numbers from 0 to 2**63 - 1")
    return [int(seed) for seed in several]


def one_for_each(prompts: str | Sequence[str], rows: int, of: str = "images") -> list[str]:
    """A list of one prompt per row; one text stands for all rows. Raises UserError for another number."""
    texts = [prompts] * rows if isinstance(prompts, str) else list(prompts)
    if len(texts) != rows:
        raise UserError(f"{len(texts)} prompts for {rows} {of}: give one for each, or one text for all")
    return texts


def generate_images(
    generator: OneStepGenerator,
    prompts: str | Sequence[str],
    *,
    seeds: int | Sequence[int] | Tensor | None = None,
    noise: Float[Tensor, "B C H W"] | None = None,
    batch_size: int = 8,
) -> Float[Tensor, "B 3 Y X"]:
    """Images of the prompts, (B, 3, Y, X) float32 in [0, 1], in host memory.

    The noise is that of `seeds` (by default 0, 1, 2, ..., one per prompt), or `noise` (B, C, H, W) float32, for example what
    `assign_noise` found. One text is the prompt of all seeds. The same seeds make the same noise for every model of a shape.
    `batch_size` images are made together; fewer where memory runs out.

    Raises UserError for another number of prompts than of seeds, and for noise of a shape that the model does not take.
    """
    check_generator(generator)
    if noise is not None and seeds is not None:
        raise UserError("seeds and noise: give one of them, the seeds make noise themselves")
    if noise is not None and tuple(noise.shape[1:]) != tuple(generator.latent_shape):
        raise UserError(f"noise of shape {tuple(noise.shape)}: this model takes (B, {str(generator.latent_shape)[1:]}")
    if noise is None and seeds is None:
        seeds = range(1 if isinstance(prompts, str) else len(prompts))
    drawn = [] if seeds is None else seed_list(seeds)
    rows = len(noise) if noise is not None else len(drawn)
    texts = one_for_each(prompts, rows, "noise maps" if noise is not None else "seeds")
    if not texts:
        raise UserError("no prompts and no seeds: give at least one of each")
    cache = PromptCache(generator)

    def made(part: slice) -> Tensor:
        maps = generator.base_noise(drawn[part]) if noise is None else noise[part].to(generator.device)
        return generator.decode(generator.denoise(maps, cache(texts[part]))).clamp(0, 1).float().cpu()

    with torch.no_grad(), at_rest(generator):
        return torch.cat(AtOnce(batch_size)(rows, made))
