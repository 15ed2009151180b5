"""Sample images from a generator, with its network in eval mode.

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
    """In this block the network is in eval mode and its weights need no gradient; afterwards both are restored."""
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
    """One seed or several as a list. Raises UserError for a value that cannot be a seed."""
    several = [seeds] if isinstance(seeds, int) else seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    wrong = [seed for seed in several if not (hasattr(seed, "__index__") and 0 <= seed < 2**63)]
    if wrong:
        raise UserError(f"seed {wrong[0]!r}: accepted are whole numbers from 0 to 2**63 - 1")
    return [int(seed) for seed in several]


def one_for_each(prompts: str | Sequence[str], rows: int, of: str = "images") -> list[str]:
    """A list of one prompt per row; a single text is used for all rows. Raises UserError for another number of prompts."""
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

    The noise comes from `seeds` (default 0, 1, 2, ..., one per prompt), or is `noise` (B, C, H, W) float32, for example the
    result of `assign_noise`. A single text is the prompt of all seeds. A seed gives the same noise for all models with the same
    noise shape. Images are made in batches of `batch_size`; smaller ones if memory runs out.

    Raises UserError if the numbers of prompts and seeds differ, and for noise of a shape that does not fit the model.
    """
    check_generator(generator)
    if noise is not None and seeds is not None:
        raise UserError("seeds and noise are both given: give one of them, since the noise is drawn from the seeds")
    if noise is not None and tuple(noise.shape[1:]) != tuple(generator.latent_shape):
        raise UserError(f"noise of shape {tuple(noise.shape)}: this model needs (B, {str(generator.latent_shape)[1:]}")
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
