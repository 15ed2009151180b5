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
    """The noise that was found for B images, with all other data that an M-step needs. Every tensor is in host memory."""

    prompts: list[str]
    #: Seeds of the base noise; with several candidates, the seed of the best one.
    seeds: list[int]
    #: ε̂, the noise that was found, and ε, the noise that the search started from; float32.
    noise: Float[Tensor, "B C H W"]
    base_noise: Float[Tensor, "B C H W"]
    #: E(x), the target of the generator's output at `noise`.
    target_latents: Float[Tensor, "B c h w"]
    #: x in [0, 1]; for a reward search, the images at `noise`.
    images: Float[Tensor, "B 3 Y X"]
    #: The parameters of the noise that the search optimised; a later search can start from them.
    parameters: Float[Tensor, "B m"]
    #: Each term of the loss at `noise`, by name: `total` was minimised, `latent` and `pixel` belong to the reconstruction.
    #: A reward appears under its own name, higher is better.
    terms: dict[str, Float[Tensor, " B"]]
    #: The same terms at the noise that the search started from.
    initial_terms: dict[str, Float[Tensor, " B"]]
    #: Evaluations per image: one forward and one backward pass of the generator each.
    evaluations: Int[Tensor, " B"]
    #: True where the loss or the gradient was not finite. Leave these images out of the M-step: `sound` has the others.
    failed: Bool[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "AssignedNoise":
        """A subset of the images, by a number, a slice, several numbers or a boolean mask (B,). Raises IndexError."""
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
        """The minimised total at the noise that was found."""
        return self.terms["total"]

    @property
    def initial_loss(self) -> Float[Tensor, " B"]:
        """The same total at the noise that the search started from."""
        return self.initial_terms["total"]

    @property
    def sound(self) -> "AssignedNoise":
        """The images whose search did not fail."""
        return self[~self.failed]


def checked_config(config: object, kind: type[Search]) -> Search:
    """The configuration, or the defaults of `kind` if it is None. Raises UserError for an object of another type."""
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
    """The E-step: find for each image x the noise ε̂ that minimises mean((f(ε̂, c) - E(x))²), with the model frozen.

    `images` are paths, Pillow images, arrays, or a tensor (B, 3, Y, X) in [0, 1], as for `read_images`. `prompts` is one text
    per image, or one text for all. `config` has the options of the search, for example `AssignConfig(steps=12, patch_size=2)`.
    `seeds` decide each image's base noise (default: 0, 1, 2, ...). `start` is an earlier result for the same images: the search
    starts from it, usually after the model was trained further. `slots` images share each call of the network, fewer if
    memory runs out. The result does not depend on which images share a call.

    Raises UserError if an image cannot be read, if the number of prompts or seeds differs from the number of images, or if
    the patch size does not divide the latent.
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
    """The engine's results for B rows, in the order of the rows."""

    found: list[Found]
    base_noise: Float[Tensor, "B C H W"]
    noise: Float[Tensor, "B C H W"]

    def assigned(self, prompts: list[str], target_latents: Tensor, images: Tensor) -> AssignedNoise:
        """The result together with the prompts, target latents (B, c, h, w) and images (B, 3, Y, X) of the rows."""

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
    """Run the engine on rows that are all in memory. `inputs` are the objective's. Raises UserError as `assign_noise` does."""
    if start is not None and seeds is not None:
        raise UserError("both seeds and start are given: give one of them (an earlier result contains its seeds)")
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
    # In float64, as when the noise of a record is rebuilt.
    return FoundNoise(found, base, engine.space.noise(to_float64(base), to_float64(parameters)).float())
