"""Stable Diffusions in miniature with random weights, of the kinds that do not ship."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def save_stable_diffusion(tiny_turbo: Path, folder: Path, text: dict[str, Any] | None = None, **scheduler: Any) -> Path:
    """Its tokenizer and autoencoder are those of tiny-turbo; `text` and `scheduler` are further settings of those parts."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_turbo / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(tiny_turbo / "vae"),
        text_encoder=CLIPTextModel(text_config(tokenizer, 16, **(text or {}))),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler_of(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_stable_diffusion_xl(tiny_turbo: Path, folder: Path, **scheduler: Any) -> Path:
    """As SDXL, and unlike tiny-turbo, it has three levels of two layers, text encoders of two widths, and a projection that is no
    square."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_turbo / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        norm_num_groups=4,
        attention_head_dim=(2, 2, 3),
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
    )
    StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(tiny_turbo / "vae"),
        text_encoder=CLIPTextModel(text_config(tokenizer, 16)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, 24, hidden_act="gelu", projection_dim=20)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler_of(**scheduler),
    ).save_pretrained(folder)
    return folder


def text_config(tokenizer: CLIPTokenizer, width: int, **others: Any) -> CLIPTextConfig:
    settings: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **(settings | others),
    )


def scheduler_of(**settings: Any) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **settings
    )
