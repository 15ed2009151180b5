"""The original names of a pipeline's layers: those of CompVis's and Stability's code, which single-file checkpoints use.

Diffusers numbers a UNet's layers per block; the original numbers them all in one sequence. `input_blocks.0` is the first
convolution. Down block b of L layers begins at `input_blocks` 1 + b(L + 1); the index after its layers is its downsampler. Up
blocks have L + 1 layers each in `output_blocks`; the upsampler shares the index of the last layer. At one index, .0 is the
residual block, .1 the attention, and the upsampler follows them.
"""

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from ortho_core.errors import UserError

#: Blocks of a UNet that the original has: with attention, and without.
ATTENTION = {"CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"}
PLAIN = {"DownBlock2D", "UpBlock2D", "UNetMidBlock2D"}
#: Layers outside the blocks, by the start of their names.
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
#: Layers of a residual block of the UNet. In the VAE only the shortcut has another name.
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
#: OpenCLIP's names of text encoder layers, by transformers' names: inside a block, and outside.
OPENCLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPENCLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
#: Diffusers' name of a layer in a block. Groups: down/mid/up, block number, kind of layer, layer number, the rest.
LAYER = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def foreign_blocks(config: Mapping[str, Any]) -> list[str]:
    """The blocks in a diffusers UNet's configuration that the original code does not have."""
    blocks = [*config["down_block_types"], config.get("mid_block_type"), *config["up_block_types"]]
    return [block for block in blocks if block is not None and block not in ATTENTION | PLAIN]


class UNetNames:
    """Names of the layers and weights of a diffusers UNet, by its configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raises UserError for a UNet with blocks that the original code does not have."""
        if unknown := foreign_blocks(config):
            known = ", ".join(sorted(ATTENTION | PLAIN))
            raise UserError(f"a UNet with a {unknown[0]} cannot be written in the original names; accepted: {known}")
        up, layers = config["up_block_types"], config["layers_per_block"]
        per_block = list(layers) if isinstance(layers, list | tuple) else [layers] * len(up)
        #: The first index of each block; the last entry is the total.
        self.down = list(accumulate((n + 1 for n in per_block), initial=1))
        self.up = list(accumulate((n + 1 for n in reversed(per_block)), initial=0))
        self.upsampler = [2 if block in ATTENTION else 1 for block in up]

    def original(self, name: str) -> str:
        """The original name of a layer or weight. Raises UserError if the original code does not have it."""
        match = LAYER.fullmatch(name)
        if match is None:
            for start, original in OUTSIDE.items():
                if name == start or name.startswith(f"{start}."):
                    return original + name.removeprefix(start)
            raise UserError(f"the UNet's {name} has no original name: single files and kohya's LoRAs cannot contain it")
        where, kind, inner = match[1], match[3], int(match[4])
        block, rest = int(match[2] or 0), match[5]
        if kind == "resnets":
            rest = renamed(rest, RESIDUAL)
        if where == "mid":
            return f"middle_block.{2 * inner + (kind == 'attentions')}.{rest}"
        if kind == "downsamplers":
            return f"input_blocks.{self.down[block + 1] - 1}.0.{renamed(rest, {'conv': 'op'})}"
        if kind == "upsamplers":
            return f"output_blocks.{self.up[block + 1] - 1}.{self.upsampler[block]}.{rest}"
        row, first = ("input_blocks", self.down) if where == "down" else ("output_blocks", self.up)
        return f"{row}.{first[block] + inner}.{int(kind == 'attentions')}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    """The original name of a weight of a diffusers `AutoencoderKL` with `blocks` blocks. The order of up blocks is reversed."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)", name):
        return f"{match[1]}mid.attn_1.{renamed(match[2], VAE_ATTENTION)}"
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}", name)
    name = re.sub(r"resnets\.(\d+)", r"block.\1", name)
    return re.sub(r"(down|up)samplers\.0", r"\1sample", name)


def openclip_name(name: str) -> str:
    """OpenCLIP's name of a block or weight of transformers' CLIP text encoder; `name` is without `text_model.`

    Not for the projections to queries, keys and values, which are one tensor in OpenCLIP.
    """
    if match := re.fullmatch(r"encoder\.layers\.(\d+)(?:\.(.+))?", name):
        return f"transformer.resblocks.{match[1]}" + (f".{renamed(match[2], OPENCLIP_BLOCK)}" if match[2] else "")
    return renamed(name, OPENCLIP)


def renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` with its start replaced, if one of `names` matches complete dotted parts of it."""
    for start, original in names.items():
        if name == start or name.startswith(f"{start}."):
            return original + name.removeprefix(start)
    return name
