"""What Ortho must know of a kind of pipeline: one class for each, and nothing about a kind anywhere else.

An adapter is used twice: to describe a folder from its configurations, without PyTorch, and to run the loaded parts. So its
module imports neither PyTorch nor diffusers at its top.

Axes: B images, C × H × W the noise map and the latent, 3 × Y × X the image, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ortho_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ortho_core.generators.one_step import OneStep


@dataclass(frozen=True)
class PartConfig:
    """The configuration of a pipeline's part, and its file for messages."""

    content: Mapping[str, Any]
    file: Path

    def number(self, name: str) -> int:
        """A whole number above 0. Raises UserError, naming the file, for another value."""
        value = self.content.get(name)
        if type(value) is not int or value < 1:
            raise UserError(f"{self.file}: {name} is {value!r}; accepted: a whole number above 0")
        return value

    def blocks(self, name: str) -> int:
        """The number of entries of a list, one for each block. Raises UserError, naming the file, for another value."""
        value = self.content.get(name)
        if not isinstance(value, list | tuple) or not value:
            raise UserError(f"{self.file} does not state the autoencoder's blocks: {name} {value!r}; accepted: a list")
        return len(value)


class PipelineAdapter(ABC):
    """One class of diffusers pipelines as a one-step model. It has no state: all methods get the parts that they need."""

    #: Name of the pipeline's class in diffusers and in `model_index.json`.
    kind: ClassVar[str]
    #: The parts that the one step needs, by their names in the folder, and those among them that a folder may lack.
    parts: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    #: Arguments that keep diffusers from loading further parts, for example a safety checker.
    left_out: ClassVar[Mapping[str, object]] = {}
    #: The part that the M-step trains; also the prefix of its layers in LoRA files.
    network: ClassVar[str] = "transformer"
    #: The half precision that the weights were made for: that of `--dtype auto` on a GPU.
    half: ClassVar[Literal["float16", "bfloat16"]] = "bfloat16"
    #: The guidance scale that is an input of the network, if the network has one and the folder states none.
    guidance: ClassVar[float | None] = None
    #: Ends of the names of the layers that get an adapter by default, and names of modules whose layers are never packed.
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    not_quantized: ClassVar[tuple[str, ...]] = ()
    #: Whether Ortho writes its weights as one file, and the file in a LoRA folder that other programs read.
    has_single_file: ClassVar[bool] = False
    lora_elsewhere: ClassVar[str | None] = None
    #: Whether diffusers' own call makes images of the size of the configurations, if it is not given a size.
    call_knows_size: ClassVar[bool] = False

    # The shapes of a folder, from its configurations.

    @abstractmethod
    def shapes(self, network: PartConfig, autoencoder: PartConfig) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """(C, H, W) of the noise map and (Y, X) of the image. Raises UserError for a configuration that does not state them."""

    def required_multiple(self, network: Mapping[str, Any]) -> int:
        """The sides of a noise map must be multiples of this."""
        return 1

    def preferred_multiple(self, network: Mapping[str, Any]) -> int:
        """The multiples of a noise map's sides among which sizes are chosen: those that the network need not pad."""
        return self.required_multiple(network)

    def guidance_input(self, network: Mapping[str, Any], stated: float | None) -> float | None:
        """What the network gets for the guidance scale that the folder states (None: the kind's own); None without such an input.

        Raises ValueError if a scale is stated for a network without the input.
        """
        if not network.get("guidance_embeds"):
            if stated is not None:
                raise ValueError(f"guidance is {stated:g}, but the network has no input for it (guidance_embeds)")
            return None
        return self.guidance if stated is None else stated

    def own_call(self, network: Mapping[str, Any], guidance: float | None) -> dict[str, object]:
        """Arguments with which diffusers' own call takes the same step, besides prompt, size and number of steps."""
        scale = self.guidance if guidance is None else guidance
        return {"guidance_scale": 0.0 if self.guidance_input(network, guidance) is None else scale}

    # The loaded parts.

    def in_network_terms(self, step: OneStep) -> OneStep:
        """The scheduler's step as the network's own: `OneStep` measures the scheduler, and some pipelines give the network
        another time or scale, or turn its output into what the scheduler expects."""
        return step

    @abstractmethod
    def call(
        self, network: nn.Module, x: Tensor, timestep: Tensor, condition: Mapping[str, Tensor], guidance: float | None
    ) -> Tensor:
        """The network's output (B, C, H, W) for x (B, C, H, W) and timestep (B,); `condition` is that of `encode_prompts`."""

    @abstractmethod
    def encode_prompts(self, pipeline: Any, prompts: list[str], size: tuple[int, int]) -> dict[str, Tensor]:
        """The condition, one row per prompt, on the device of the text encoders; `encoder_hidden_states` has the network's dtype.
        `size` is (Y, X)."""

    def prompt_settings(self, network: Mapping[str, Any]) -> str:
        """What decides embeddings of prompts besides the text encoders and tokenizers."""
        return ""

    def is_truncated(self, pipeline: Any, prompt: str) -> bool:
        """Whether the text encoders see only the beginning of a prompt."""
        return any(
            len(tokenizer(prompt).input_ids) > tokenizer.model_max_length for tokenizer in self.tokenizers(pipeline)
        )

    def tokenizers(self, pipeline: Any) -> list[Any]:
        """The tokenizers that the pipeline has."""
        return self._present(pipeline, "tokenizer")

    def text_encoders(self, pipeline: Any) -> list[nn.Module]:
        """The text encoders that the pipeline has."""
        return self._present(pipeline, "text_encoder")

    def _present(self, pipeline: Any, kind: str) -> list[Any]:
        parts = (getattr(pipeline, name, None) for name in self.parts if name.startswith(kind))
        return [part for part in parts if part is not None]

    def encode(self, autoencoder: Any, images: Tensor) -> Tensor:
        """The autoencoder's latents (B, C, H, W) of images (B, 3, Y, X) in [-1, 1], without scale and shift: a distribution's
        mean."""
        latents: Tensor = autoencoder.encode(images).latent_dist.mean
        return latents

    def scale(self, autoencoder: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
        """Shift m and factor s of each channel: the network's latents are (z - m)·s for latents z of the autoencoder."""
        factor, shift = float(autoencoder.get("scaling_factor") or 1.0), float(autoencoder.get("shift_factor") or 0.0)
        return [shift] * channels, [factor] * channels

    def tile(self, autoencoder: Any, size: tuple[int, int]) -> None:
        """Make the autoencoder process tiles of half of each side of images of `size` (Y, X)."""
        autoencoder.enable_tiling()
        autoencoder.tile_sample_min_size = max(size) // 2
        autoencoder.tile_latent_min_size = max(size) // 2 // 2 ** (len(autoencoder.config.block_out_channels) - 1)
