"""`aesthetic`: the improved aesthetic predictor. It predicts how people rate a picture, independent of the prompt.

Axes: B images, 3 × Y × X the image, E the CLIP embedding, P prompts.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ortho_core.errors import UserError
from ortho_core.rewards.base import FolderOf, Scoring, check_files, frozen, load_weights, read_weights
from ortho_core.rewards.clip import ORIGIN as CLIP_ORIGIN
from ortho_core.rewards.clip import ClipTower, Loading, clip_files

WEIGHTS = "sac+logos+ava1-l14-linearMSE.pth"
ORIGIN = "the improved aesthetic predictor (christophschuhmann/improved-aesthetic-predictor)"


class AestheticPredictor(nn.Module):
    """Linear layers E → 1024 → 128 → 64 → 16 → 1 with dropout after the first three; names as in the published weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # No activations: the published predictor has none.
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Ratings (B,) of unit embeddings (B, E)."""
        score: Tensor = self.layers(embedding)
        return score[:, 0]


class Aesthetic(Scoring):
    """`aesthetic`: the predictor's rating, about 1 to 10; it does not depend on the prompt."""

    name = "aesthetic"

    def __init__(self, tower: ClipTower, predictor: AestheticPredictor) -> None:
        self.tower, self.predictor = tower, predictor

    @staticmethod
    def load(folder: Path, tower: ClipTower, device: str | torch.device = "cpu", dtype: str = "float32") -> "Aesthetic":
        """Raises UserError if the weights are missing or do not belong to the tower's CLIP model."""
        check_files(folder, "aesthetic", [(WEIGHTS,)], ORIGIN)
        file = folder / WEIGHTS
        weights = read_weights(file, "aesthetic")
        first = weights.get("layers.0.weight")
        if isinstance(first, Tensor) and first.ndim == 2 and first.shape[1] != tower.width:
            raise UserError(
                f"reward aesthetic: {file} rates embeddings of length {first.shape[1]}, but those of the CLIP model have "
                f"length {tower.width}; accepted: the CLIP model it was trained with (the published one: CLIP ViT-L/14)"
            )
        predictor = AestheticPredictor(tower.width)
        load_weights(predictor, weights, file, "aesthetic")
        # At least float32: the few layers need little memory, and half precision would be too coarse.
        exact = "float64" if dtype == "float64" else "float32"
        return Aesthetic(tower, frozen(predictor, device, exact))

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """`nothing`: (P, 0), an empty tensor that only has the number of rows."""
        return {"nothing": torch.zeros(len(prompts), 0, device=self.tower.model.device)}

    def score_embedding(self, embedding: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of unit embeddings (B, E)."""
        score: Tensor = self.predictor(embedding)
        return score

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]."""
        return self.score_embedding(self.tower.embed_images(images), encoded)


def files(folder: Path, folder_of: FolderOf) -> list[Path]:
    """The files of the predictor and of its CLIP model. Raises UserError for missing ones."""
    check_files(folder, "aesthetic", [(WEIGHTS,)], ORIGIN)
    return [folder / WEIGHTS, *clip_files(folder_of("clip"), "aesthetic", CLIP_ORIGIN)]


def load(folder: Path, loading: Loading) -> Aesthetic:
    """Raises UserError for files that are missing or do not belong together."""
    tower = loading.tower(loading.folder_of("clip"), "aesthetic")
    return Aesthetic.load(folder, tower, loading.device, loading.dtype)
