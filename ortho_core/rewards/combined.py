"""Weighted sums of rewards, and their loader.

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
    """Σ weight · reward. Rewards with the same CLIP tower share one embedding of the image per call."""

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        if not rewards or rewards.keys() != weights.keys():
            raise ValueError("one weight for each reward is needed, and at least one reward")
        self.rewards, self.weights = dict(rewards), {name: weights[name] for name in rewards}

    @property
    def name(self) -> str:
        """The rewards as text `name:weight,...`, which `parse_rewards` reads."""
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
        """Each reward's score (B,), without its weight, of images (B, 3, Y, X) in [0, 1].

        `embedded` are unit embeddings (B, E) of the images that are already computed, by the `id` of their tower.
        """
        embeddings = dict(embedded or {})
        scores = {}
        for name, reward in self.rewards.items():
            prefix = f"{name}/"
            inputs = {key.removeprefix(prefix): tensor for key, tensor in encoded.items() if key.startswith(prefix)}
            if isinstance(reward, EmbeddingReward):
                tower = reward.tower
                if id(tower) not in embeddings:
                    embeddings[id(tower)] = tower.embed_images(images)
                scores[name] = reward.score_embedding(embeddings[id(tower)], inputs)
            else:
                scores[name] = reward.score_encoded(images, inputs)
        return scores

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """(B,): the weighted sum of the results of `scores`."""
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
    """The weighted sum that `spec` names; each model is loaded once. `towers` are the loaded CLIP models by folder.

    `aesthetic` uses the CLIP model in `clip`'s folder. Raises UserError as `parse_rewards` does, for missing files before any is
    loaded, and for damaged files.
    """
    weights = parse_rewards(spec)
    for name in weights:
        check_reward_files(name, folders)
    folder_of = partial(reward_folder, folders=folders)
    loading = Loading(folder_of, device, dtype, {} if towers is None else towers)
    return WeightedSum({name: KINDS[name].load(folder_of(name), loading) for name in weights}, weights)
