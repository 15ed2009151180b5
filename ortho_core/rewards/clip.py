"""CLIP models in transformers' format, and the reward `clip`: the CLIP similarity of image and prompt.

Axes: B images, 3 × Y × X the image, E the joint embedding, P prompts, L tokens.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ortho_core.errors import UserError
from ortho_core.rewards.base import (
    CLIP_MEAN,
    CLIP_STD,
    FolderOf,
    Preprocessing,
    Scoring,
    check_files,
    cosine,
    frozen,
    in_chunks,
    unit,
    who,
)
from ortho_core.text.parsing import NotParsedError, json_file
from ortho_core.text.plain_text import one_line

#: The files of a folder: at least one of each line.
CLIP_FILES = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("preprocessor_config.json",),
    ("tokenizer.json", "vocab.json"),
)
ORIGIN = "CLIP ViT-L/14 (openai/clip-vit-large-patch14)"
BICUBIC = 3  # PIL's number, as in preprocessor_config.json


class ClipTower:
    """One CLIP model, frozen: unit embeddings of images and of prompts in the space that both share."""

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocessing) -> None:
        self.model, self.tokenizer, self.preprocess = model, tokenizer, preprocess

    @staticmethod
    def load(
        folder: Path, reward: str, origin: str, device: str | torch.device = "cpu", dtype: str = "float32"
    ) -> "ClipTower":
        """Raises UserError if the folder is not a CLIP model; `origin` is the model whose files belong there."""
        check_files(folder, reward, CLIP_FILES, origin)
        _check_model_type(folder / "config.json", reward)
        from transformers import (
            AutoTokenizer,
            CLIPModel,
        )  # not above: it takes seconds, and option parsing does not need it

        try:
            model, report = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # every library raises other errors for damaged files
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{who(reward)}: {folder} cannot be loaded as a CLIP model: {reason}") from error
        # transformers would initialise them randomly, with only a warning.
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"{who(reward)}: the weights in {folder} lack {len(missing)} tensors, {missing[0]} among them"
            )
        preprocess = read_preprocessing(folder / "preprocessor_config.json", reward)
        size = model.config.vision_config.image_size
        if preprocess.size != size:
            raise UserError(
                f"{who(reward)}: {folder / 'preprocessor_config.json'} makes images of {preprocess.size} pixels, but the "
                f"model of that folder needs {size}; accepted: {size}"
            )
        return ClipTower(frozen(model, device, dtype), tokenizer, preprocess)

    @property
    def width(self) -> int:
        """E, the length of an embedding."""
        return int(self.model.config.projection_dim)

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the model's cosines, 100 in most models."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale.to(torch.promote_types(scale.dtype, torch.float32))

    def image_features(self, images: Tensor) -> Tensor:
        """Embeddings (B, E) of images (B, 3, Y, X) in [0, 1], not normalised, with gradients."""
        pixels = self.preprocess(images).to(self.model.dtype)
        features: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, E) of images (B, 3, Y, X) in [0, 1], with gradients."""
        return unit(self.image_features(images))

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Unit embeddings (P, E); a prompt longer than the text encoder's window is truncated."""
        return in_chunks(self._embed_prompts, prompts)

    def _embed_prompts(self, prompts: list[str]) -> Tensor:
        # Padded to the window, not to the longest prompt of the batch: a row must not depend on the other prompts.
        window = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=window, return_tensors="pt"
        ).to(self.model.device)
        features = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return unit(features.pooler_output)


@dataclass(frozen=True)
class Loading:
    """The settings for loading rewards. A CLIP model that several rewards share is loaded once."""

    folder_of: FolderOf
    device: str | torch.device = "cpu"
    dtype: str = "float32"
    #: Loaded models by folder; newly loaded ones are added.
    towers: MutableMapping[Path, ClipTower] = field(default_factory=dict)

    def tower(self, folder: Path, reward: str, origin: str = ORIGIN) -> ClipTower:
        """The CLIP model in a folder. Raises UserError as `ClipTower.load` does."""
        if folder not in self.towers:
            self.towers[folder] = ClipTower.load(folder, reward, origin, self.device, self.dtype)
        return self.towers[folder]


@runtime_checkable
class EmbeddingReward(Protocol):
    """A reward that only uses the CLIP embedding of the image, so that several rewards can share one embedding."""

    tower: ClipTower

    def score_embedding(self, embedding: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Scores (B,) from the tower's unit embeddings (B, E) of the images."""
        ...


class Clip(Scoring):
    """`clip`: the cosine between the embeddings of image and prompt, in [-1, 1]; not multiplied by the model's scale.

    With CLIP ViT-L/14 it is about 0.15 for a picture of something else and 0.3 for one that fits.
    """

    name = "clip"

    def __init__(self, tower: ClipTower) -> None:
        self.tower = tower

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """`text`: unit embeddings (P, E)."""
        return {"text": self.tower.embed_prompts(prompts)}

    def score_embedding(self, embedding: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of unit embeddings (B, E)."""
        return cosine(embedding, encoded["text"])

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]."""
        return self.score_embedding(self.tower.embed_images(images), encoded)


def files(folder: Path, folder_of: FolderOf) -> list[Path]:
    """The files of `clip`. Raises UserError for missing ones."""
    return clip_files(folder, "clip", ORIGIN)


def load(folder: Path, loading: Loading) -> Clip:
    """Raises UserError for files that are missing or damaged."""
    return Clip(loading.tower(folder, "clip"))


def clip_files(folder: Path, reward: str, origin: str) -> list[Path]:
    """The files in a CLIP model's folder that decide its results. Raises UserError for missing ones."""
    check_files(folder, reward, CLIP_FILES, origin)
    weights = [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    return sorted([*folder.glob("*.json"), *folder.glob("merges.txt"), *weights])


def read_preprocessing(file: Path, reward: str) -> Preprocessing:
    """The preprocessing in a `preprocessor_config.json`. Raises UserError for any other kind than CLIP's."""
    config = _read_json(file, reward)
    size = config.get("size", 224)
    if isinstance(size, dict):
        size = size.get("shortest_edge")
    crop = config.get("crop_size", size)
    if isinstance(crop, dict):
        crop = crop.get("height") if crop.get("height") == crop.get("width") else None
    steps = ("do_resize", "do_center_crop", "do_normalize")
    wrong = [f"{step} is {config[step]}" for step in steps if not config.get(step, True)]
    if config.get("resample", BICUBIC) != BICUBIC:
        wrong.append(f"resample is {config['resample']}")
    if not isinstance(size, int) or size != crop:
        wrong.append(f"size is {config.get('size')} and crop_size {config.get('crop_size')}")
    if wrong:
        raise UserError(
            f"{who(reward)}: {file}: {', '.join(wrong)}; accepted: a bicubic resize (resample {BICUBIC}) of the shorter "
            "side to a size, a square crop of that size, and normalisation"
        )
    mean, std = tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))
    return Preprocessing(int(size), mean, std, crop_to_even=False)


def _check_model_type(file: Path, reward: str) -> None:
    kind = _read_json(file, reward).get("model_type")
    if kind != "clip":
        raise UserError(f"{who(reward)}: {file} names a model of type {kind}; accepted: clip")


def _read_json(file: Path, reward: str) -> dict[str, Any]:
    try:
        return json_file(file)
    except (OSError, NotParsedError) as error:
        raise UserError(f"{who(reward)}: {one_line(error)}") from error
