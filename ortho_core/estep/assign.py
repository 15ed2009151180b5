"""The E-step as one call, for a notebook or a script: images and prompts in, noise out.

Axes: B images, C × H × W the noise map, c × h × w the latent, 3 × Y × X the image, m parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.device import to_float64
from ortho_core.errors import UserError
from ortho_core.estep.config import AssignConfig, Search, SearchConfig
from ortho_core.estep.engine import Engine, Found
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.estep.queue import requests_of
from ortho_core.estep.rows import ROWS_ENCODED_TOGETHER
from ortho_core.generators.base import check_generator, check_latents
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.generators.sampling import at_rest, one_for_each, seed_list
from ortho_core.pairs.read import Picture, read_images


@dataclass(frozen=True, repr=False)
class AssignedNoise:
    """The noise that was found for B images, and all that an M-step trains on. Every tensor is in host memory."""

    prompts: list[str]
    #: Of the base noise; with several candidates, the seed of the best one.
    seeds: list[int]
    #: ε̂: what was found, and ε, what the search began from; float32.
    noise: Float[Tensor, "B C H W"]
    base_noise: Float[Tensor, "B C H W"]
    #: E(x), what the generator's output is to be at `noise`.
    target_latents: Float[Tensor, "B c h w"]
    #: x in [0, 1]; of a search for a reward, the images that were found.
    images: Float[Tensor, "B 3 Y X"]
    #: What the search was over, for another search to start from.
    parameters: Float[Tensor, "B m"]
    #: Each term of the loss at `noise`, by name: `total` is what was minimised, `latent` and `pixel` are the reconstruction's.
    #: A reward has its own name, higher is better.
    terms: dict[str, Float[Tensor, " B"]]
    #: The same at the noise that the search began from.
    initial_terms: dict[str, Float[Tensor, " B"]]
    #: Forward and backward passes of the generator.
    evaluations: Int[Tensor, " B"]
    #: The loss or the gradient was not finite: leave such images out of the M-step (`sound`).
    failed: Bool[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "AssignedNoise":
        """Some of the images, also of one alone: a number, a slice, numbers, or a mask (B,) of booleans. Raises IndexError."""
        taken_rows = torch.arange(len(self))[index if isinstance(index, slice) else torch.as_tensor(index)]
        rows = taken_rows.reshape(-1).tolist()
        taken: dict[str, Any] = {}
        for name, value in ((each.name, getattr(self, each.name)) for each in fields(self)):
            if isinstance(value, dict):
                taken[name] = {term: values[rows] for term, values in value.items()}
            else:
                taken[name] = value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
        return AssignedNoise(**taken)

    def __repr__(self) -> str:
        count = f"{len(self)} image{'' if len(self) == 1 else 's'}"
        before, after = float(self.initial_loss.mean()), float(self.loss.mean())
        return f"AssignedNoise({count}, mean loss {before:.4g} → {after:.4g}, {int(self.failed.sum())} failed)"

    @property
    def loss(self) -> Float[Tensor, " B"]:
        """What was minimised, at the noise that was found."""
        return self.terms["total"]

    @property
    def initial_loss(self) -> Float[Tensor, " B"]:
        """The same at the noise that the search began from."""
        return self.initial_terms["total"]

    @property
    def sound(self) -> "AssignedNoise":
        """The images whose search did not fail."""
        return self[~self.failed]


def checked_config(config: object, kind: type[Search]) -> Search:
    """The configuration, by default one of this kind as it is. Raises UserError for one of another kind."""
    if config is None:
        return kind()
    if not isinstance(config, kind):
        raise UserError(f"config is of type {type(config).__name__}: give {kind.__name__}(steps=12), or leave it out")
    return config


def assign_noise(
    generator: OneStepGenerator,
    images: Picture | Sequence[Picture],
    prompts: str | Sequence[str],
    config: AssignConfig | None = None,
    *,
    seeds: int | Sequence[int] | Tensor | None = None,
    start: AssignedNoise | None = None,
    slots: int = 16,
) -> AssignedNoise:
    """The E-step: for each image x the noise ε̂ that minimises mean((f(ε̂, c) - E(x))²), with the model frozen.

    `images` is what `read_images` takes: paths, Pillow's pictures, arrays, or a tensor (B, 3, Y, X) in [0, 1]. `prompts` is one
    text per image, or one for all. `config` has the options of the search (`AssignConfig(steps=12, patch_size=2)`). `seeds`
    give each image's base noise (by default 0, 1, 2, ...). `start` is an earlier result for the same images, to search on from
    with a model that has been trained since. `slots` images share each call of the network; fewer where memory runs out.
    The result does not depend on which images share a call.

    Raises UserError for an image that cannot be read, another number of prompts or seeds than of images, and a patch size
    that does not divide the latent.
    """
    check_generator(generator)
    config = checked_config(config, AssignConfig)
    pixels = read_images(images, generator.image_size)
    texts = one_for_each(prompts, len(pixels))
    with at_rest(generator):
        encode = AtOnce(ROWS_ENCODED_TOGETHER)
        with torch.no_grad():
            parts = encode(len(pixels), lambda part: generator.encode_images(pixels[part].to(generator.device)).cpu())
        targets = torch.cat(parts)
        condition = PromptCache(generator)(texts)
        check_latents(generator, condition, targets)
        objective = Reconstruction(generator, config)
        on_device = pixels.to(generator.device) if config.pixel_l1_weight else None
        inputs = objective.inputs(condition, targets.to(generator.device), on_device)
        searched = search(generator, objective, inputs, len(pixels), config, seeds=seeds, start=start, slots=slots)
    return searched.assigned(texts, targets, pixels)


@dataclass(frozen=True)
class FoundNoise:
    """What the engine found for B rows, in their order."""

    found: list[Found]
    base_noise: Float[Tensor, "B C H W"]
    noise: Float[Tensor, "B C H W"]

    def assigned(self, prompts: list[str], target_latents: Tensor, images: Tensor) -> AssignedNoise:
        """With what the rows were searched for."""

        def terms(of_last: bool) -> dict[str, Tensor]:
            names = self.found[0].history
            at = [one.best_step if of_last else 0 for one in self.found]
            values = {n: [float(one.history[n][k]) for one, k in zip(self.found, at, strict=True)] for n in names}
            return {name: torch.tensor(each) for name, each in values.items()}

        return AssignedNoise(
            prompts=prompts,
            seeds=[one.seed for one in self.found],
            noise=self.noise,
            base_noise=self.base_noise,
            target_latents=target_latents,
            images=images,
            parameters=torch.stack([one.parameters for one in self.found]),
            terms=terms(True),
            initial_terms=terms(False),
            evaluations=torch.tensor([one.evaluations for one in self.found]),
            failed=torch.tensor([one.failed for one in self.found]),
        )


def search(
    generator: OneStepGenerator,
    objective: Objective,
    inputs: Mapping[str, Tensor],
    rows: int,
    config: SearchConfig,
    *,
    seeds: int | Sequence[int] | Tensor | None = None,
    start: AssignedNoise | None = None,
    slots: int = 16,
) -> FoundNoise:
    """Run the engine on rows that are all in memory; `inputs` are those of the objective. Raises UserError as `assign_noise`."""
    if start is not None and seeds is not None:
        raise UserError("seeds and start: give one of them, an earlier result has its seeds")
    drawn = seed_list(seeds) if seeds is not None else list(range(rows)) if start is None else start.seeds
    if len(drawn) != rows:
        raise UserError(
            f"{len(drawn)} {'seeds' if start is None else 'earlier results'} for {rows} images: give one for each"
        )
    engine = Engine(generator, config, max(1, min(slots, rows)), objective)
    starts = None if start is None else list(start.parameters)
    if start is not None and start.parameters.shape[1] != engine.space.parameters:
        raise UserError(
            f"start has {start.parameters.shape[1]} parameters per image, this search has {engine.space.parameters}: search "
            "with the same model shape, transform, patch_size and regions"
        )
    requests = requests_of(range(rows), drawn, inputs, starts)
    found = sorted(engine.run(requests), key=lambda one: int(str(one.key)))
    base = generator.base_noise([one.seed for one in found]).cpu()
    parameters = torch.stack([one.parameters for one in found])
    # In float64, as the noise of a record is rebuilt.
    return FoundNoise(found, base, engine.space.noise(to_float64(base), to_float64(parameters)).float())
