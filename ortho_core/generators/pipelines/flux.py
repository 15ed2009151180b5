"""FLUX.1-schnell: a transformer over packed 16-channel latents, with T5's tokens and CLIP's pooled vector.

Axes: B images, C × H × W the noise map and the latent, T tokens. The network gets H/2 · W/2 tokens of 4·C numbers each; noise
maps and latents are not packed, so that patches and records are those of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ortho_core.errors import UserError
from ortho_core.generators.lora_files import LORA_WEIGHTS
from ortho_core.generators.pipelines.adapter import PartConfig, PipelineAdapter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ortho_core.generators.one_step import OneStep

#: Latents along each side of a token.
TOKEN_SIDE = 2
#: The longest prompts in T5's tokens: of schnell, and of models with a guidance embedding.
T5_TOKENS, T5_TOKENS_WITH_GUIDANCE = 256, 512


class Flux(PipelineAdapter):
    """`FluxPipeline`: FLUX.1-schnell, and models distilled from FLUX.1-dev, which have the guidance scale as an input."""

    kind = "FluxPipeline"
    parts = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
    left_out = dict.fromkeys(("feature_extractor", "image_encoder"))
    guidance = 3.5
    lora_elsewhere = LORA_WEIGHTS
    # Those of diffusers' own training program: attention and feed-forward layers of image and text.
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    not_quantized = ("time_text_embed", "x_embedder")

    def shapes(self, network: PartConfig, autoencoder: PartConfig) -> tuple[tuple[int, int, int], tuple[int, int]]:
        channels, side = network.number("in_channels"), autoencoder.number("sample_size")
        if channels % TOKEN_SIDE**2:
            raise UserError(f"{network.file}: in_channels is {channels}; accepted: a multiple of {TOKEN_SIDE**2}")
        factor = 2 ** (autoencoder.blocks("block_out_channels") - 1)
        H = side // (factor * TOKEN_SIDE) * TOKEN_SIDE
        return (channels // TOKEN_SIDE**2, H, H), (H * factor, H * factor)

    def required_multiple(self, network: Mapping[str, Any]) -> int:
        return TOKEN_SIDE

    def in_network_terms(self, step: OneStep) -> OneStep:
        """The network's time is in [0, 1], the scheduler's in [0, 1000]."""
        return replace(step, timestep=step.timestep / 1000)

    def call(
        self, network: nn.Module, x: Tensor, timestep: Tensor, condition: Mapping[str, Tensor], guidance: float | None
    ) -> Tensor:
        import torch

        B, C, H, W = x.shape
        h, w = H // TOKEN_SIDE, W // TOKEN_SIDE
        states = condition["encoder_hidden_states"]
        packed = (
            x.view(B, C, h, TOKEN_SIDE, w, TOKEN_SIDE).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * TOKEN_SIDE**2)
        )
        places = x.new_zeros(h, w, 3)
        places[..., 1] = torch.arange(h, device=x.device)[:, None]
        places[..., 2] = torch.arange(w, device=x.device)
        output: Tensor = network(
            hidden_states=packed,
            timestep=timestep,
            guidance=None if guidance is None else timestep.new_full((B,), guidance),
            pooled_projections=condition["pooled_projections"],
            encoder_hidden_states=states,
            txt_ids=x.new_zeros(states.shape[1], 3),
            img_ids=places.reshape(h * w, 3),
            return_dict=False,
        )[0]
        return output.view(B, h, w, C, TOKEN_SIDE, TOKEN_SIDE).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)

    def encode_prompts(self, pipeline: Any, prompts: list[str], size: tuple[int, int]) -> dict[str, Tensor]:
        states, pooled, _ = pipeline.encode_prompt(
            prompts, device=pipeline.text_encoder.device, max_sequence_length=_tokens(pipeline.transformer.config)
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def prompt_settings(self, network: Mapping[str, Any]) -> str:
        return f"{_tokens(network)} tokens"

    def is_truncated(self, pipeline: Any, prompt: str) -> bool:
        # CLIP's window is shorter, but only its pooled vector is used.
        return len(pipeline.tokenizer_2(prompt).input_ids) > _tokens(pipeline.transformer.config)

    def own_call(self, network: Mapping[str, Any], guidance: float | None) -> dict[str, object]:
        return super().own_call(network, guidance) | {"max_sequence_length": _tokens(network)}


def _tokens(network: Mapping[str, Any]) -> int:
    return T5_TOKENS_WITH_GUIDANCE if network.get("guidance_embeds") else T5_TOKENS
