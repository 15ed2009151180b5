"""Weighted sums of rewards, and the loader of them.

Axes: B images, 3 × Y × X the image, P prompts.
"""

from collections.abc import Mapping, MutableMapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ortho_core.rewards.base import Reward, Scoring
from ortho_core.rewards.clip import ClipTower, EmbeddingReward, Loading
from ortho_core.rewards.kinds import KINDS
from ortho_core.rewards.names import ROOT, Folders, check_reward_files, parse_rewards, reward_folder


class WeightedSum(Scoring):
    """Σ weight · reward. Rewards that see the image through the same CLIP tower share one embedding of it per call."""

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        if not rewards or rewards.keys() != weights.keys():
            raise ValueError("one weight for each reward is needed, and one reward at least")
        self.rewards, self.weights = dict(rewards), {name: weights[name] for name in rewards}

    @property
    def name(self) -> str:
        """What `parse_rewards` makes the same of."""
        return ",".join(f"{name}:{weight:g}" for name, weight in self.weights.items())

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The tensors of each reward, as `reward/tensor`, one row per prompt."""
        return {
            f"{name}/{key}": tensor
            for name, reward in self.rewards.items()
            for key, tensor in reward.encode_prompts(prompts).items()
        }

    def scores(
        self, images: Tensor, encoded: Mapping[str, Tensor], embedded: Mapping[int, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Each reward's own score (B,), before its weight, of images (B, 3, Y, X) in [0, 1].

        `embedded` are unit embeddings (B, E) of the images that are at hand, by the id of their tower.
        """
        embeddings = dict(embedded or {})
        scores = {}
        for name, reward in self.rewards.items():
            prefix = f"{name}/"
            own = {key.removeprefix(prefix): tensor for key, tensor in encoded.items() if key.startswith(prefix)}
            if isinstance(reward, EmbeddingReward):
                tower = reward.tower
                if id(tower) not in embeddings:
                    embeddings[id(tower)] = tower.embed_images(images)
                scores[name] = reward.score_embedding(embeddings[id(tower)], own)
            else:
                scores[name] = reward.score_encoded(images, own)
        return scores

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """(B,): the weighted sum of what `scores` returned."""
        return torch.stack([weight * scores[name] for name, weight in self.weights.items()]).sum(0)

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]."""
        return self.total(self.scores(images, encoded))


def load_rewards(
    spec: str,
    folders: Folders = ROOT,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    towers: MutableMapping[Path, ClipTower] | None = None,
) -> WeightedSum:
    """The weighted sum that `spec` names, each model loaded once; `towers` are CLIP models by folder, to use and to add to.

    `aesthetic` looks at images through the CLIP model in `clip`'s folder. Raises UserError as `parse_rewards` does, for
    files that are missing, before anything is loaded, and for files that are damaged.
    """
    weights = parse_rewards(spec)
    for name in weights:
        check_reward_files(name, folders)
    folder_of = partial(reward_folder, folders=folders)
    loading = Loading(folder_of, device, dtype, {} if towers is None else towers)
    return WeightedSum({name: KINDS[name].load(folder_of(name), loading) for name in weights}, weights)
