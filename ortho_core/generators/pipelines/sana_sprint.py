"""SANA-Sprint (Chen et al. 2025): a linear transformer over 32-channel latents of a deep autoencoder, distilled for TrigFlow.

Axes: B images, C × H × W the noise map and the latent, T tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ortho_core.generators.pipelines.adapter import PartConfig, PipelineAdapter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ortho_core.generators.one_step import OneStep

#: The longest prompt in tokens, without the instruction: the pipeline's own limit.
GEMMA_TOKENS = 300


class SanaSprint(PipelineAdapter):
    """`SanaSprintPipeline`, 0.6B and 1.6B: one step at t = π/2, with the guidance scale as an input."""

    kind = "SanaSprintPipeline"
    parts = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    guidance = 4.5
    not_quantized = ("time_embed", "caption_projection")

    def shapes(self, network: PartConfig, autoencoder: PartConfig) -> tuple[tuple[int, int, int], tuple[int, int]]:
        C, side = network.number("in_channels"), network.number("sample_size")
        factor = 2 ** (autoencoder.blocks("encoder_block_out_channels") - 1)
        return (C, side, side), (side * factor, side * factor)

    def required_multiple(self, network: Mapping[str, Any]) -> int:
        return int(network.get("patch_size") or 1)

    def guidance_input(self, network: Mapping[str, Any], stated: float | None) -> float | None:
        scale = super().guidance_input(network, stated)
        return None if scale is None else scale * float(network.get("guidance_embeds_scale") or 1.0)

    def own_call(self, network: Mapping[str, Any], guidance: float | None) -> dict[str, object]:
        # Otherwise its call divides the step at a time in between, and rounds sizes to those of 1024 pixels.
        own = {"intermediate_timesteps": None, "use_resolution_binning": False}
        return super().own_call(network, guidance) | own

    def in_network_terms(self, step: OneStep) -> OneStep:
        """The scheduler's time t is an angle (TrigFlow); the network was trained with s = sin t / (sin t + cos t) and gives a
        flow's velocity. Its input is k·x with k = sqrt(s² + (1 - s)²), and the scheduler gets
        ((1 - 2s)·k·x + (1 - 2s + 2s²)·v) / k (SANA-Sprint, eq. 4 and 5)."""
        s = math.sin(step.timestep) / (math.sin(step.timestep) + math.cos(step.timestep))
        k = math.sqrt(s**2 + (1 - s) ** 2)
        return replace(
            step,
            timestep=s,
            input_scale=k,
            noise_weight=step.noise_weight + step.output_weight * (1 - 2 * s),
            output_weight=step.output_weight * (1 - 2 * s + 2 * s**2) / k,
        )

    def call(
        self, network: nn.Module, x: Tensor, timestep: Tensor, condition: Mapping[str, Tensor], guidance: float | None
    ) -> Tensor:
        states = condition["encoder_hidden_states"]
        scale: Any = None if guidance is None else states.new_full((len(x),), guidance)
        output: Tensor = network(
            x,
            encoder_hidden_states=states,
            encoder_attention_mask=condition["encoder_attention_mask"],
            guidance=scale,
            timestep=timestep,
            return_dict=False,
        )[0]
        return output

    def encode_prompts(self, pipeline: Any, prompts: list[str], size: tuple[int, int]) -> dict[str, Tensor]:
        states, mask = pipeline.encode_prompt(
            prompts,
            device=pipeline.text_encoder.device,
            max_sequence_length=GEMMA_TOKENS,
            complex_human_instruction=instruction(),
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def is_truncated(self, pipeline: Any, prompt: str) -> bool:
        before = "\n".join(instruction())
        whole, own = (len(pipeline.tokenizer(text).input_ids) for text in (before + prompt.lower().strip(), before))
        return whole > own + GEMMA_TOKENS - 2

    def encode(self, autoencoder: Any, images: Tensor) -> Tensor:
        latents: Tensor = autoencoder.encode(images, return_dict=False)[0]
        return latents

    def tile(self, autoencoder: Any, size: tuple[int, int]) -> None:
        # Tiles that overlap by an eighth, in whole latents.
        factor = autoencoder.spatial_compression_ratio
        tile = max(1, max(size) // 2 // factor)
        stride = max(1, tile - max(1, tile // 8))
        autoencoder.enable_tiling(*(factor * each for each in (tile, tile, stride, stride)))


@cache
def instruction() -> tuple[str, ...]:
    """The instruction that the pipeline puts before each prompt, on which the model was trained: a default of its call."""
    from diffusers import SanaSprintPipeline

    return tuple(inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default)
