"""What looks at images: extractors, rewards and LPIPS, each loaded once, each image shown to each CLIP model once.

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

#: Images whose shorter side is less have no place for SSIM's window.
SSIM_WINDOW = 11


@dataclass(frozen=True)
class JudgeModels:
    """Which models judge, found and not loaded. `cmmd` is None where CMMD is made from `features`."""

    features: FeatureModel
    cmmd: FeatureModel | None
    rewards: str | None
    reward_folders: Mapping[str, Path]
    lpips: Path | None


@dataclass(frozen=True)
class Seen:
    """Of B images: `features` (B, D), `cmmd_features` if CMMD has its own, and each reward's score (B,); on the CPU."""

    features: Mapping[str, Tensor]
    rewards: Mapping[str, Tensor]


class Judge:
    """The models of one worker."""

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
        """What the models make of images (B, 3, Y, X) in [0, 1]; rewards only with the images' prompts."""
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
        """`psnr` (dB), `ssim` and `lpips` (B,) of images and targets (B, 3, Y, X) in [0, 1]; those that there are."""
        error = (images - targets).square().flatten(1).mean(1)
        found = {"psnr": -10 * error.clamp_min(1e-10).log10()}
        if min(images.shape[-2:]) >= SSIM_WINDOW:
            from torchmetrics.functional.image import structural_similarity_index_measure

            # One image at a time would be as right, and slow; without reduction each image's value is its own.
            ssim = structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none")
            assert isinstance(ssim, Tensor)
            found["ssim"] = ssim.reshape(len(images))
        if self.lpips is not None:
            found["lpips"] = self.lpips(images, targets)
        return {name: values.float().cpu() for name, values in found.items()}
