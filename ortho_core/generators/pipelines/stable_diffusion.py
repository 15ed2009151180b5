"""Stable Diffusion 1 and 2, and SDXL: a UNet over 4-channel latents, with cross-attention to CLIP's tokens.

Axes: B images, C × H × W the noise map and the latent, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ortho_core.errors import UserError
from ortho_core.framing.frame import Frame
from ortho_core.generators.lora_files import KOHYA_WEIGHTS
from ortho_core.generators.pipelines.adapter import PartConfig, PipelineAdapter

if TYPE_CHECKING:
    from torch import Tensor, nn


class StableDiffusion(PipelineAdapter):
    """`StableDiffusionPipeline`: SD-Turbo, and one-step models from SD 1.5."""

    kind = "StableDiffusionPipeline"
    parts: ClassVar[tuple[str, ...]] = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
    left_out: ClassVar[Mapping[str, object]] = {
        **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")),
        "requires_safety_checker": False,
    }
    network = "unet"
    half = "float16"
    # The embeddings of time and size have few weights, and all other layers depend on them.
    not_quantized = ("time_embedding", "add_embedding", "time_emb_proj", "class_embedding")
    has_single_file = True
    lora_elsewhere = KOHYA_WEIGHTS
    call_knows_size = True

    def shapes(self, network: PartConfig, autoencoder: PartConfig) -> tuple[tuple[int, int, int], tuple[int, int]]:
        if network.content.get("time_cond_proj_dim") is not None:
            raise UserError(
                f"{network.file}: a UNet with a guidance embedding (time_cond_proj_dim) is not supported as a one-step model"
            )
        C: Any = network.content.get("in_channels")
        size: Any = network.content.get("sample_size")
        H, W = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        if not all(type(n) is int and n > 0 for n in (C, H, W)):
            raise UserError(
                f"{network.file} does not state the latent's shape: in_channels {C!r}, sample_size {size!r}; accepted: a number "
                "of channels, and one side or [height, width]"
            )
        # Each block of the autoencoder but one halves the image.
        factor = 2 ** (autoencoder.blocks("block_out_channels") - 1)
        return (C, H, W), (H * factor, W * factor)

    def preferred_multiple(self, network: Mapping[str, Any]) -> int:
        blocks = network.get("block_out_channels")
        return 2 ** (len(blocks) - 1) if isinstance(blocks, list | tuple) and blocks else 1

    def scale(self, autoencoder: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
        mean, std = autoencoder.get("latents_mean"), autoencoder.get("latents_std")
        factor = float(autoencoder["scaling_factor"])
        return list(mean or [0.0] * channels), [factor / each for each in std or [1.0] * channels]

    def call(
        self, network: nn.Module, x: Tensor, timestep: Tensor, condition: Mapping[str, Tensor], guidance: float | None
    ) -> Tensor:
        added = {name: condition[name] for name in ("text_embeds", "time_ids") if name in condition}
        output: Tensor = network(
            x,
            timestep,
            encoder_hidden_states=condition["encoder_hidden_states"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return output

    def encode_prompts(self, pipeline: Any, prompts: list[str], size: tuple[int, int]) -> dict[str, Tensor]:
        return {"encoder_hidden_states": self._encoded(pipeline, prompts)[0]}

    def _encoded(self, pipeline: Any, prompts: list[str]) -> Any:
        encoder = self.text_encoders(pipeline)[0]
        return pipeline.encode_prompt(
            prompts, device=encoder.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )


class StableDiffusionXL(StableDiffusion):
    """`StableDiffusionXLPipeline`: SDXL Turbo, DMD2, Hyper-SD and others; with micro-conditioning (Podell et al. 2023, 2.2)."""

    kind = "StableDiffusionXLPipeline"
    parts = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
    optional = ("text_encoder", "tokenizer")
    left_out = dict.fromkeys(("feature_extractor", "image_encoder"))

    def encode_prompts(self, pipeline: Any, prompts: list[str], size: tuple[int, int]) -> dict[str, Tensor]:
        import torch

        from ortho_core.device import to_device

        states, _, pooled, _ = self._encoded(pipeline, prompts)
        # An uncropped image: original size, crop corner, target size. The host does not wait for the copy.
        ids = to_device(torch.tensor([Frame.plain(size)], dtype=states.dtype), states.device)
        return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": ids.repeat(len(prompts), 1)}
