"""The models that score images: extractors, rewards and LPIPS. Each is loaded once, and runs once per image.

Axes: B images, 3 × Y × X pixels, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ortho_core.evaluation.features import ClipFeatures, Extractor, FeatureModel, Lpips
from ortho_core.generators.prompt_cache import TextCache
from ortho_core.rewards.base import unit
from ortho_core.rewards.clip import ClipTower
from ortho_core.rewards.combined import WeightedSum, load_rewards

#: Side of SSIM's window in pixels; smaller images have no SSIM.
SSIM_WINDOW = 11


@dataclass(frozen=True)
class JudgeModels:
    """The models of an evaluation, located but not loaded. `cmmd` is None if CMMD uses `features`."""

    features: FeatureModel
    cmmd: FeatureModel | None
    rewards: str | None
    reward_folders: Mapping[str, Path]
    lpips: Path | None


@dataclass(frozen=True)
class Seen:
    """Results for B images, on the CPU: `features` (B, D), `cmmd_features` if CMMD has other ones, each reward's score (B,)."""

    features: Mapping[str, Tensor]
    rewards: Mapping[str, Tensor]


class Judge:
    """The loaded models of one worker."""

    def __init__(self, models: JudgeModels, device: str | torch.device) -> None:
        """Raises UserError for files that cannot be loaded."""
        towers: dict[Path, ClipTower] = {}
        self.extractors: dict[str, Extractor] = {"features": models.features.load(device, towers)}
        if models.cmmd is not None:
            self.extractors["cmmd_features"] = models.cmmd.load(device, towers)
        self.rewards: WeightedSum | None = None
        if models.rewards is not None:
            self.rewards = load_rewards(models.rewards, models.reward_folders, device, towers=towers)
            self.encoded = TextCache(self.rewards.encode_prompts)
        self.lpips = None if models.lpips is None else Lpips(models.lpips, device)

    @torch.no_grad()
    def look(self, images: Tensor, prompts: list[str] | None = None) -> Seen:
        """Features and rewards of images (B, 3, Y, X) in [0, 1]. Without prompts there are no rewards."""
        features = {name: extractor(images) for name, extractor in self.extractors.items()}
        scores: dict[str, Tensor] = {}
        if self.rewards is not None and prompts is not None:
            embedded = {
                id(extractor.tower): unit(features[name])
                for name, extractor in self.extractors.items()
                if isinstance(extractor, ClipFeatures)
            }
            scores = self.rewards.scores(images, self.encoded(prompts), embedded)
        return Seen(
            {name: values.float().cpu() for name, values in features.items()},
            {name: values.float().cpu() for name, values in scores.items()},
        )

    @torch.no_grad()
    def compare(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """`psnr` (dB), `ssim` and `lpips`, each (B,), of images and targets (B, 3, Y, X) in [0, 1].

        `ssim` is missing for images smaller than its window, `lpips` if it is not loaded.
        """
        error = (images - targets).square().flatten(1).mean(1)
        figures = {"psnr": -10 * error.clamp_min(1e-10).log10()}
        if min(images.shape[-2:]) >= SSIM_WINDOW:
            from torchmetrics.functional.image import structural_similarity_index_measure

            # Without reduction each image keeps its own value, so the whole batch is computed at once.
            ssim = structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none")
            assert isinstance(ssim, Tensor)
            figures["ssim"] = ssim.reshape(len(images))
        if self.lpips is not None:
            figures["lpips"] = self.lpips(images, targets)
        return {name: values.float().cpu() for name, values in figures.items()}
