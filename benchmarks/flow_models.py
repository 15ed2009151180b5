"""SANA-Sprint and FLUX.1-schnell in miniature with random weights, of the real classes and their configurations' form."""

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ortho_core.generators.pipelines.sana_sprint import instruction

LETTERS = ["▁", *string.printable.strip()]


def save_sana_sprint(folder: Path, **network: Any) -> Path:
    """Images of 32 pixels, 8 x 8 latents of 4 channels. `network` are other settings of the transformer."""
    torch.manual_seed(0)
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS])}
    text = Gemma2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
    )
    settings: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 8,
        "patch_size": 1,
        "qk_norm": "rms_norm_across_heads",
        "guidance_embeds": True,
        "guidance_embeds_scale": 0.1,
    }
    transformer = SanaTransformer2DModel(**(settings | network))
    autoencoder = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    tokenizer = GemmaTokenizer(vocab=vocabulary)
    # The instruction before each prompt as a few tokens, for speed; letter by letter it would be more than a thousand.
    tokenizer.add_tokens([line.strip() for line in instruction() if line.strip()])
    text.vocab_size = len(tokenizer)
    SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text),
        vae=autoencoder,
        transformer=transformer,
        scheduler=SCMScheduler(prediction_type="trigflow", sigma_data=0.5),
    ).save_pretrained(folder)
    return folder


def save_flux(tiny_turbo: Path, folder: Path, *, scheduler: dict[str, Any] | None = None, **network: Any) -> Path:
    """Images of 32 pixels, 16 x 16 latents of 4 channels. CLIP's tokenizer is that of tiny-turbo; `scheduler` and `network` are
    other settings of these parts."""
    torch.manual_seed(0)
    clip = CLIPTokenizer.from_pretrained(tiny_turbo / "tokenizer")
    t5 = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in LETTERS)], extra_ids=0
    )
    settings: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (2, 2, 4),
    }
    transformer = FluxTransformer2DModel(**(settings | network))
    text = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
    )
    autoencoder = AutoencoderKL(
        sample_size=32,
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(t5), d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=2, is_gated_act=True)
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 1.0} | (scheduler or {}))),
        vae=autoencoder,
        text_encoder=CLIPTextModel(text),
        tokenizer=clip,
        text_encoder_2=encoder,
        tokenizer_2=t5,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
