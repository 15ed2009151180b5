"""What a one-step generator is: `x = D(f(ε, c))`, with f one network evaluation and D a decoder.

Axes: B images, C × H × W the noise map and the latent, 3 × Y × X the image.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ortho_core.errors import UserError


@dataclass(frozen=True)
class Condition:
    """What the network is told besides the noise: named tensors, each with one row per image."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Tensor | slice | list[int]) -> "Condition":
        return Condition({k: v[index] for k, v in self.tensors.items()})

    def repeat_interleave(self, times: int) -> "Condition":
        """Each row `times` times in a row."""
        return Condition({k: v.repeat_interleave(times, dim=0) for k, v in self.tensors.items()})

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        return Condition({k: torch.cat([p.tensors[k] for p in parts]) for k in parts[0].tensors})


@runtime_checkable
class OneStepGenerator(Protocol):
    """`x = decode(denoise(noise, condition))`; latents and images are float32 whatever the network computes in."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise map."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(Y, X) in pixels."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def trainable(self) -> nn.Module:
        """The network that the M-step trains. May be set to a wrapper of it (DDP)."""
        ...

    @trainable.setter
    def trainable(self, module: nn.Module) -> None: ...

    def base_noise(self, seeds: list[int]) -> Tensor:
        """ε ~ N(0, I), (B, C, H, W) float32; row b depends on seeds[b] alone."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Condition:
        """One row per prompt."""
        ...

    def count_truncated(self, prompts: list[str]) -> int:
        """How many of the prompts are longer than the text encoder's window and lose their end."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """E(x), the target latents (B, C, H, W) of images (B, 3, Y, X) in [0, 1]."""
        ...

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        """f(ε, c): one step, (B, C, H, W) to (B, C, H, W), differentiable in the noise and in `trainable`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """D(z): images (B, 3, Y, X), nominally in [0, 1] and not clamped, so that gradients survive."""
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that `load_generator` loads; it appears whole or not at all."""
        ...


#: The diffusers pipeline classes that are one-step generators to us.
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def check_model_folder(folder: str | Path) -> str:
    """The pipeline class that `folder` names. Raises UserError, naming the file, if it is none that we know."""
    folder = Path(folder)
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist (give a local folder, e.g. models/tiny-turbo)")
    if not index.is_file():
        raise UserError(f"{folder} is not a model folder: no model_index.json in it (a diffusers pipeline is expected)")
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not a diffusers model index: {error!r}") from error
    if name not in PIPELINES:
        raise UserError(f"{index} names a {name}; accepted: {', '.join(PIPELINES)}")
    return str(name)


def load_generator(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    *,
    gradient_checkpointing: bool = False,
) -> OneStepGenerator:
    """Load the generator in `folder` onto `device`, its network in `dtype`. Raises UserError as `check_model_folder`.

    `gradient_checkpointing` computes activations twice to keep fewer of them.
    """
    name = check_model_folder(folder)
    # diffusers takes seconds to import; a driver that only checks and plans never needs it.
    from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

    generator = DiffusersGenerator.load(name, Path(folder), torch.device(device), getattr(torch, dtype))
    if gradient_checkpointing:
        generator.pipeline.unet.enable_gradient_checkpointing()
    return generator


def model_fingerprint(folder: str | Path) -> str:
    """SHA-256 (16 hex digits) over the names and contents of the files that make the model what it is."""
    folder = Path(folder)
    digest = hashlib.sha256()
    files = [f for f in sorted(folder.rglob("*")) if f.suffix in {".json", ".safetensors", ".txt"} and f.is_file()]
    if not files:
        raise UserError(f"{folder} holds no model files (.json, .safetensors)")
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder)}\0{content}\0".encode())
    return digest.hexdigest()[:16]


def latent_shape_of(folder: str | Path) -> tuple[int, int, int]:
    """(C, H, W) read from the network's configuration alone, so that a job can be checked before anything is loaded."""
    file = Path(folder) / "unet" / "config.json"
    check_model_folder(folder)
    try:
        config = json.loads(file.read_text())
        size = config["sample_size"]
        H, W = (size, size) if isinstance(size, int) else size
        return int(config["in_channels"]), int(H), int(W)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not state the latent's shape: {error!r}") from error
