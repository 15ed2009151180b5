"""The search for the noise with the highest reward as one call, and a reward that is a function of yours.

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

#: Terms that every search has beside those of its objective.
OTHER_TERMS = ("total", "drift", "prior")


class FunctionReward(Scoring):
    """A function of images as a reward; the prompt plays no part in it."""

    def __init__(self, score: Callable[[Tensor], Tensor], name: str = "") -> None:
        """`score` makes (B,) of images (B, 3, Y, X) in [0, 1], with PyTorch's operations, so that it has a gradient."""
        self.function = score
        self.called = name or getattr(score, "__name__", "reward").strip("<>")

    @property
    def name(self) -> str:
        return self.called

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """A column of zeros, for a batch's rows to be counted by."""
        return {"nothing": torch.zeros(len(prompts), 1)}

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]. Raises UserError for scores of another shape, or without a gradient."""
        scores = self.function(images)
        if scores.shape != (len(images),):
            raise UserError(
                f"reward {self.name} made {tuple(scores.shape)} of {len(images)} images; it must make one number for each: "
                "take means over axes 1, 2 and 3 alone"
            )
        if images.requires_grad and not scores.requires_grad:
            raise UserError(
                f"reward {self.name} has no gradient in the images: compute it with PyTorch's operations alone"
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
    """For each prompt the noise whose image has the highest reward, with the model frozen.

    `reward` is a function that makes (B,) of images (B, 3, Y, X) in [0, 1], differentiable; or a `Reward`, which knows the
    prompts too. `prompts` is one text per image, or one for all seeds. `seeds` give each image's base noise (by default 0, 1,
    2, ...). `terms` of the result has the reward by its name, `initial_terms` what it was at the base noise; `images` and
    `target_latents` are those at the noise that was found, so that an M-step can train on the result.

    Raises UserError for a function that makes another shape or has no gradient, another number of seeds than of prompts, and
    a patch size that does not divide the latent.
    """
    check_generator(generator)
    config = checked_config(config, SearchConfig)
    scoring: Reward = reward if isinstance(reward, Reward) else FunctionReward(reward)
    if scoring.name in OTHER_TERMS:
        raise UserError(f"a reward cannot be called {scoring.name}, as a term of every loss is: give it another name")
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
    return searched.assigned(texts, latents, images)
