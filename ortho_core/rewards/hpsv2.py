"""`hpsv2.0` and `hpsv2.1`: the Human Preference Score v2, computed by open_clip from its published checkpoints.

Axes: B images, 3 × Y × X the image, E the joint embedding, P prompts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ortho_core.errors import UserError, install
from ortho_core.rewards.base import (
    FolderOf,
    Preprocessing,
    Scoring,
    check_files,
    cosine,
    frozen,
    in_chunks,
    load_weights,
    read_weights,
    unit,
)
from ortho_core.rewards.clip import Loading

#: The published file of each version. Both have the same tensors; only the file name shows the version.
CHECKPOINTS = {"hpsv2.0": "HPS_v2_compressed.pt", "hpsv2.1": "HPS_v2.1_compressed.pt"}
ARCHITECTURE = "ViT-H-14"


class HpsV2(Scoring):
    """The cosine between the embeddings of image and prompt, about 0.2 to 0.35; the versions' scales are not comparable."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        # As in the published evaluation: a picture that is not square is padded with black, not cropped.
        self.preprocess = Preprocessing(_image_size(model), fit="pad", cut_overshoot=False)

    @staticmethod
    def load(folder: Path, name: str, device: str | torch.device = "cpu", dtype: str = "float32") -> "HpsV2":
        """Raises UserError if the version's checkpoint is missing or damaged; the other version is never used instead."""
        file = checkpoint(folder, name)
        weights = read_weights(file, name)
        if not isinstance(weights.get("state_dict"), dict):
            raise UserError(f"reward {name}: {file} has no state_dict in it; accepted: an HPSv2 checkpoint")
        try:
            import open_clip
        except ImportError as error:
            raise UserError(f"reward {name} needs open_clip: {install('rewards')}") from error
        model = open_clip.create_model(ARCHITECTURE, pretrained=None, load_weights=False)
        load_weights(model, weights["state_dict"], file, name)
        return HpsV2(name, frozen(model, device, dtype), open_clip.get_tokenizer(ARCHITECTURE))

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """`text`: unit embeddings (P, E); a prompt longer than the text encoder's window is truncated."""
        return {"text": in_chunks(self._embed_prompts, prompts)}

    def _embed_prompts(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(prompts).to(self.model.logit_scale.device)
        return unit(self.model.encode_text(tokens))

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]."""
        pixels = self.preprocess(images).to(self.model.logit_scale.dtype)
        return cosine(unit(self.model.encode_image(pixels)), encoded["text"])


def checkpoint(folder: Path, name: str) -> Path:
    """The file of one version. Raises UserError if it does not exist."""
    file = folder / CHECKPOINTS[name]
    other = next(version for version in CHECKPOINTS if version != name)
    if not file.is_file() and (folder / CHECKPOINTS[other]).is_file():
        raise UserError(
            f"reward {name}: {folder} only has {CHECKPOINTS[other]}, which is {other}; put {CHECKPOINTS[name]} "
            f"there, or use {other}"
        )
    check_files(folder, name, [(CHECKPOINTS[name],)], "HPSv2 (xswu/HPSv2)")
    return file


def _image_size(model: Any) -> int:
    size = model.visual.image_size
    return int(size if isinstance(size, int) else size[0])


def files(version: str, folder: Path, folder_of: FolderOf) -> list[Path]:
    """The checkpoint of a version. Raises UserError if it does not exist."""
    return [checkpoint(folder, version)]


def load(version: str, folder: Path, loading: Loading) -> HpsV2:
    """Raises UserError if the version's checkpoint is missing or damaged."""
    return HpsV2.load(folder, version, loading.device, loading.dtype)
