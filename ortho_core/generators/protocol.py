"""The protocol of a one-step generator: `x = D(f(ε, c))`, with f one network evaluation and D a decoder.

Axes: B images, C × H × W the noise map and the latent, 3 × Y × X the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ortho_core.device import to_device
from ortho_core.framing.frame import Frame


@dataclass(frozen=True)
class Condition:
    """The network's inputs besides the noise: named tensors, each with one row per image."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Tensor | slice | list[int]) -> "Condition":
        return Condition({k: v[index] for k, v in self.tensors.items()})

    def repeat_interleave(self, times: int) -> "Condition":
        """Repeat each row `times` times, the copies next to each other."""
        return Condition({k: v.repeat_interleave(times, dim=0) for k, v in self.tensors.items()})

    def framed(self, frames: Sequence[Frame]) -> "Condition":
        """The same with each row's frame as micro-conditioning, for networks that have it (`time_ids` of SDXL)."""
        ids = self.tensors.get("time_ids")
        if ids is None:
            return self
        return Condition({**self.tensors, "time_ids": to_device(torch.tensor(frames, dtype=ids.dtype), ids.device)})

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        return Condition({k: torch.cat([p.tensors[k] for p in parts]) for k in parts[0].tensors})


@runtime_checkable
class OneStepGenerator(Protocol):
    """`x = decode(denoise(noise, condition))`; latents and images are float32, whatever the network's dtype."""

    #: Fingerprint of the files it was loaded from, set by `load_generator`; None if the generator was made otherwise.
    loaded_fingerprint: str | None

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
        """The network that the M-step trains. May be replaced by a wrapper of it (DDP)."""
        ...

    @trainable.setter
    def trainable(self, module: nn.Module) -> None: ...

    def base_noise(self, seeds: list[int]) -> Tensor:
        """ε ~ N(0, I), (B, C, H, W) float32; row b depends only on seeds[b]."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Condition:
        """One row per prompt. Raises BadRow for a text that the model cannot use; the empty text is always accepted."""
        ...

    def count_truncated(self, prompts: list[str]) -> int:
        """Number of prompts that are longer than the text encoder's window, and are truncated."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """E(x), the target latents (B, c, h, w) of images (B, 3, Y, X) in [0, 1]; (c, h, w) is `ModelFolder.target_shape`."""
        ...

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        """f(ε, c): one step from noise (B, C, H, W) to latents (B, c, h, w), differentiable in noise and in `trainable`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """D(z): images (B, 3, Y, X), nominally in [0, 1]; not clamped, because clamping would zero gradients."""
        ...

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """Move the text encoders, or the autoencoder, to host memory until they are next used.

        Do not call it between a differentiable `decode` and its backward pass, which needs the weights on the device.
        """
        ...

    def save(self, folder: str | Path, card: str | None = None, *, single_file: bool = False) -> None:
        """Write a folder that `load_generator` loads; it appears whole or not at all. `card` becomes its README.md.

        `single_file` adds one file with all weights for other programs, for kinds of models that have such a format.
        """
        ...
