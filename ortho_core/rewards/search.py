"""The search for the noise with the highest reward as one call, and rewards from your own functions.

Axes: B prompts, C × H × W the noise map, 3 × Y × X the image.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.errors import UserError
from ortho_core.estep.assign import AssignedNoise, checked_config, search
from ortho_core.estep.config import SearchConfig
from ortho_core.generators.base import check_generator
from ortho_core.generators.prompt_cache import PromptCache, TextCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.generators.sampling import at_rest, one_for_each, seed_list
from ortho_core.rewards.base import Reward, Scoring
from ortho_core.rewards.combined import WeightedSum
from ortho_core.rewards.objective import RewardObjective

#: Terms that every search has besides those of its objective.
OTHER_TERMS = ("total", "drift", "prior")


class FunctionReward(Scoring):
    """A function of images as a reward; it does not depend on the prompt."""

    def __init__(self, score: Callable[[Tensor], Tensor], name: str = "") -> None:
        """`score` maps images (B, 3, Y, X) in [0, 1] to (B,), with PyTorch's operations, so that it has a gradient."""
        self.function = score
        self.called = name or getattr(score, "__name__", "reward").strip("<>")

    @property
    def name(self) -> str:
        return self.called

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """`nothing`: zeros (P, 1), which only have the number of rows."""
        return {"nothing": torch.zeros(len(prompts), 1)}

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Scores (B,) of images (B, 3, Y, X) in [0, 1]. Raises UserError for another shape, or without a gradient."""
        scores: object = self.function(images)
        if not isinstance(scores, Tensor):
            raise UserError(
                f"reward {self.name} returned {type(scores).__name__}; accepted: a torch tensor ({len(images)},), one number per "
                "image, computed with PyTorch's operations"
            )
        if scores.shape != (len(images),):
            raise UserError(
                f"reward {self.name} returned shape {tuple(scores.shape)} for {len(images)} images; accepted: one number per "
                f"image, ({len(images)},), for example a mean over axes 1, 2 and 3"
            )
        if images.requires_grad and not scores.requires_grad:
            raise UserError(
                f"reward {self.name} has no gradient in the images: compute it only with PyTorch's operations"
            )
        return scores


def raise_reward(
    generator: OneStepGenerator,
    reward: Reward | Callable[[Tensor], Tensor],
    prompts: str | Sequence[str],
    config: SearchConfig | None = None,
    *,
    seeds: int | Sequence[int] | Tensor | None = None,
    slots: int = 16,
) -> AssignedNoise:
    """Find for each prompt the noise with the highest reward, with the model frozen.

    `reward` is a differentiable function from images (B, 3, Y, X) in [0, 1] to (B,), or a `Reward`, which also gets the prompts.
    The number of an image must depend only on that image, since images of other prompts share the batch. `config` is by default
    `SearchConfig()`; `ortho reward` uses `SearchConfig(steps=20, patch_size=8)`, which reaches higher rewards.
    `prompts` is one text per image, or one text for all seeds. `seeds` decide each image's base noise (default: 0, 1, 2, ...).
    In the result, `terms` has the reward under its name, and `initial_terms` the reward at the base noise. `images` and
    `target_latents` are those at the noise that was found, so that an M-step can train on the result.

    Raises UserError for a function that returns another shape, has no gradient or is not finite for any image, if the numbers
    of seeds and prompts differ, and if the patch size does not divide the latent.
    """
    check_generator(generator)
    config = checked_config(config, SearchConfig)
    if not isinstance(reward, Reward) and not callable(reward):
        raise UserError(
            f"reward {reward!r} is not a function of images; accepted: a function, or a Reward. Rewards by name are for "
            "`ortho reward --reward NAME`"
        )
    scoring: Reward = reward if isinstance(reward, Reward) else FunctionReward(reward)
    if scoring.name in OTHER_TERMS:
        raise UserError(
            f"a reward cannot be called {scoring.name}: every loss has a term of that name; give it another name"
        )
    drawn = None if seeds is None else seed_list(seeds)
    count = len(drawn) if drawn is not None else 1 if isinstance(prompts, str) else len(prompts)
    texts = one_for_each(prompts, count, "seeds")
    if not texts:
        raise UserError("no prompts and no seeds: give at least one of each")
    objective = RewardObjective(generator, WeightedSum({scoring.name: scoring}, {scoring.name: 1.0}))
    with at_rest(generator):
        encoded = TextCache(objective.rewards.encode_prompts)(texts)
        condition = PromptCache(generator)(texts)
        inputs = {name: rows.to(generator.device) for name, rows in objective.inputs(condition, encoded).items()}
        searched = search(generator, objective, inputs, len(texts), config, seeds=drawn, slots=slots)

        def made(part: slice) -> tuple[Tensor, Tensor]:
            latents = generator.denoise(searched.noise[part].to(generator.device), condition[part])
            return latents.cpu(), generator.decode(latents).clamp(0, 1).float().cpu()

        with torch.no_grad():
            latents, images = (torch.cat(parts) for parts in zip(*AtOnce(slots)(len(texts), made), strict=True))
    found = searched.assigned(texts, latents, images)
    if not found.initial_terms[scoring.name].isfinite().any():
        raise UserError(f"reward {scoring.name} is not finite for any of the {len(texts)} images at their base noise")
    return found
