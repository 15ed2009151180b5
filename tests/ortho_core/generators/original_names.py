"""Weights of a diffusers pipeline in the names of the original repositories, for the tests of single-file checkpoints.

Written from the layout of those repositories' networks (CompVis' and Stability's UNet and autoencoder, OpenCLIP's text model),
not from what reads it here.
"""

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ortho_core.generators.part_files import read_json

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
AUTOENCODER = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "resnets": "block",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "down_blocks": "down",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}


def unet_name(name: str, layers: int, attention_in_up: set[int]) -> str:
    """The original name of a UNet's module or tensor; `layers` a block, `attention_in_up` the up blocks that have attention."""
    for ours, theirs in OUTER.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    match = re.match(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match:
        side, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if side == "down_blocks":
            if kind == "downsamplers":
                return f"input_blocks.{(layers + 1) * (block + 1)}.0.{rest.replace('conv', 'op')}"
            place = f"input_blocks.{(layers + 1) * block + number + 1}"
        else:
            if kind == "upsamplers":
                return f"output_blocks.{(layers + 1) * block + layers}.{2 if block in attention_in_up else 1}.{rest}"
            place = f"output_blocks.{(layers + 1) * block + number}"
        return f"{place}.{0 if kind == 'resnets' else 1}.{_resnet(rest) if kind == 'resnets' else rest}"
    match = re.match(r"mid_block\.(\w+)\.(\d+)\.(.+)", name)
    assert match, name
    if match[1] == "attentions":
        return f"middle_block.1.{match[3]}"
    return f"middle_block.{2 * int(match[2])}.{_resnet(match[3])}"


def _resnet(rest: str) -> str:
    first, dot, last = rest.partition(".")
    return RESNET[first] + dot + last


def unet_names(folder: Path) -> dict[str, str]:
    """The original name of each of the UNet's tensors."""
    config = read_json(folder / "unet" / "config.json")
    up = {n for n, kind in enumerate(config["up_block_types"]) if "CrossAttn" in kind}
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return {name: unet_name(name, config["layers_per_block"], up) for name in tensors}


def _replaced(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = re.sub(rf"(?<![\w.]){re.escape(ours)}(?![\w])|(?<=\.){re.escape(ours)}(?![\w])", theirs, name)
    return name


def _autoencoder(tensors: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        renamed = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}", _replaced(name, AUTOENCODER))
        if ".attn_1." in renamed and renamed.endswith("weight") and ".norm." not in renamed:
            value = value[:, :, None, None]
        found[renamed] = value
    return found


def _open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = value.T
        elif ".q_proj." in name:
            place = _replaced(name, OPEN_CLIP).replace("self_attn.q_proj.", "attn.in_proj_")
            three = [tensors[key] for key in _three(name, tensors)]
            found[place] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name:
            found[_replaced(name, OPEN_CLIP)] = value
    return found


def _three(name: str, tensors: dict[str, Tensor]) -> list[str]:
    prefix = "text_model." if any(key.startswith("text_model.") for key in tensors) else ""
    return [prefix + name.replace("q_proj", f"{which}_proj") for which in "qkv"]


def single_file(folder: Path, file: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the pipeline in `folder` as one checkpoint, and its configurations beside it, in a folder of the file's name."""
    names, xl = unet_names(folder), (folder / "text_encoder_2").is_dir()
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    out = {f"model.diffusion_model.{names[name]}": value for name, value in tensors.items()}
    blocks = len(read_json(folder / "vae" / "config.json")["block_out_channels"])
    autoencoder = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    out |= {f"first_stage_model.{name}": value for name, value in _autoencoder(autoencoder, blocks).items()}
    first = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    for name, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        out[f"{first}text_model.{name.removeprefix('text_model.')}"] = value
    if xl:
        second = _open_clip(load_file(folder / "text_encoder_2" / "model.safetensors"))
        out |= {f"conditioner.embedders.1.model.{name}": value for name, value in second.items()}
    save_file({name: value.to(dtype).contiguous() for name, value in out.items()}, file)
    shutil.copytree(folder, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    return file
