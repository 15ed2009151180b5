"""The UNets of SDXL, SD 1.5 and SD 2 at real size without weights, and their layers, counted up as the original builds them."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel

#: What the published configurations say beside diffusers' defaults.
CONFIGS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
#: Transformer blocks of an attention by level, of the middle one at the end.
DEPTHS = {"sdxl": (0, 2, 10, 10), "sd15": (1, 1, 1, 0, 1), "sd2": (1, 1, 1, 0, 1)}
#: Linear layers of a transformer block that a LoRA has by default.
DEFAULTS = [f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")]


def unet(which: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[which])


def attentions(which: str) -> Iterator[tuple[str, int]]:
    """The places of the original's attentions, and how many transformer blocks each has."""
    *depths, middle = DEPTHS[which]
    place = 0
    for level, depth in enumerate(depths):
        for _ in range(2):  # layers of a level
            place += 1
            if depth:
                yield f"input_blocks.{place}.1", depth
        place += level < len(depths) - 1  # its downsampler
    yield "middle_block.1", middle
    place = -1
    for depth in reversed(depths):
        for _ in range(3):
            place += 1
            if depth:
                yield f"output_blocks.{place}.1", depth


def residuals(which: str) -> Iterator[tuple[str, bool]]:
    """The places of the original's residual blocks, and whether the shortcut of each changes the number of channels."""
    channels, levels = CONFIGS[which].get("block_out_channels", (320, 640, 1280, 1280)), len(DEPTHS[which]) - 1
    place, width, kept = 0, channels[0], [channels[0]]
    for level, out in enumerate(channels):
        for _ in range(2):
            place += 1
            yield f"input_blocks.{place}.0", width != out
            width = out
            kept.append(width)
        if level < levels - 1:
            place += 1
            kept.append(width)
    yield from (("middle_block.0", False), ("middle_block.2", False))
    for place in range(3 * levels):
        yield f"output_blocks.{place}.0", True  # it is given what the way down kept as well


def original_layers(which: str) -> set[str]:
    """Every layer with weights, as the original names it."""
    levels = len(DEPTHS[which]) - 1
    names = {"input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2"}
    names |= {"label_emb.0.0", "label_emb.0.2"} if which == "sdxl" else set()
    for place, changes in residuals(which):
        names |= {
            f"{place}.{n}" for n in ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
        }
        names |= {f"{place}.skip_connection"} if changes else set()
    with_attention = dict(attentions(which))
    for place, depth in with_attention.items():
        names |= {f"{place}.norm", f"{place}.proj_in", f"{place}.proj_out"}
        inner = [*DEFAULTS, "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
        names |= {f"{place}.transformer_blocks.{n}.{layer}" for n in range(depth) for layer in inner}
    for level in range(levels - 1):
        names.add(f"input_blocks.{3 * (level + 1)}.0.op")
        last = f"output_blocks.{3 * level + 2}"
        names.add(f"{last}.{2 if f'{last}.1' in with_attention else 1}.conv")
    return names
