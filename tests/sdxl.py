"""SDXL Turbo as its published configurations describe it, with weights of no content on a device that is not there."""

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes as host

from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.lora import TRAINED, _inject
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.protocol import Condition

UNET = {
    "sample_size": 64,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
#: Tokens of a prompt, and the width of the two encoders together and of the second's pooled output.
TOKENS, WIDTH, POOLED = 77, 2048, 1280


def generator(device: torch.device, dtype: torch.dtype, lora: Lora | None = None) -> DiffusersGenerator:
    """As `load_generator` leaves it: the network in `dtype`, the autoencoder in float32, frozen but for an adapter."""
    with host(), torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE).requires_grad_(False)
        if lora is None:
            unet.requires_grad_(False)
        else:
            _inject(unet, lora, TRAINED)
    place(unet, device, dtype, torch.channels_last)
    place(vae, device, torch.float32)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = EulerAncestralDiscreteScheduler(**SCHEDULER)
    return DiffusersGenerator(StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, **parts))


def place(
    network: nn.Module, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
) -> nn.Module:
    """Give a network of shapes alone its weights on `device`; those that train keep their type."""
    for module in network.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            form = layout if old.dim() == 4 else torch.contiguous_format
            kind = old.dtype if old.requires_grad else dtype
            new = torch.empty(old.shape, device=device, dtype=kind, memory_format=form)
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            kind = dtype if buffer.is_floating_point() else buffer.dtype
            module.register_buffer(name, torch.empty(buffer.shape, device=device, dtype=kind))
    return network.eval()


def condition(rows: int, device: torch.device, dtype: torch.dtype) -> Condition:
    """Encoded prompts."""
    shapes = {"encoder_hidden_states": (TOKENS, WIDTH), "text_embeds": (POOLED,), "time_ids": (6,)}
    return Condition({name: torch.empty(rows, *shape, device=device, dtype=dtype) for name, shape in shapes.items()})


def latents(rows: int, device: torch.device) -> Tensor:
    return torch.empty(rows, 4, 64, 64, device=device)
