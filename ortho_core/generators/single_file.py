"""Write a pipeline as one file, with the original names: a checkpoint that ComfyUI, Forge and A1111 load.

UNet, VAE and text encoders have different prefixes. SD 1's text encoder and SDXL's first keep transformers' format. SD 2's and
SDXL's second are in OpenCLIP's format: one tensor for the projections to queries, keys and values, and the text projection
transposed. The VAE's attention consists of 1 x 1 convolutions.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ortho_core.errors import UserError
from ortho_core.generators.original_names import UNetNames, openclip_name, vae_name
from ortho_core.generators.shared_files import SDXL, SPEC, architecture, model_spec
from ortho_core.storage.tensors import in_type, write_tensors

#: The single file in a checkpoint folder, beside the pipeline.
SINGLE_FILE = "single_file.safetensors"
#: Blocks of OpenCLIP's ViT-H text encoder. SD 2 uses all but the last: pipelines have 23.
VIT_H_BLOCKS = 24


def single_file_tensors(pipeline: Any) -> Iterator[tuple[str, Tensor]]:
    """Each weight with its original name; dtype and device are unchanged.

    `pipeline` is a loaded StableDiffusionPipeline or StableDiffusionXLPipeline, without adapters. Raises UserError for a pipeline
    with parts that have no original names.
    """
    unet, vae = pipeline.unet, pipeline.vae
    names = UNetNames(unet.config)
    for name, weight in unet.state_dict().items():
        yield f"model.diffusion_model.{names.original(name)}", weight
    blocks = len(vae.config.block_out_channels)
    for name, weight in vae.state_dict().items():
        linear = ".attentions." in name and weight.ndim == 2
        yield f"first_stage_model.{vae_name(name, blocks)}", weight[:, :, None, None] if linear else weight
    if architecture(unet.config) == SDXL:
        if pipeline.text_encoder is None:
            raise UserError(
                "a pipeline without its first text encoder cannot be a single file: other programs need both"
            )
        yield from transformers_tensors("conditioner.embedders.0.transformer.text_model.", pipeline.text_encoder)
        yield from openclip_tensors("conditioner.embedders.1.model.", pipeline.text_encoder_2)
        yield from prediction_marks(pipeline.scheduler.config)
    elif pipeline.text_encoder.config.hidden_act == "quick_gelu":  # OpenAI's CLIP
        yield from transformers_tensors("cond_stage_model.transformer.text_model.", pipeline.text_encoder)
    else:
        yield from openclip_tensors("cond_stage_model.model.", pipeline.text_encoder)


def transformers_tensors(prefix: str, encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in encoder.state_dict().items():
        yield prefix + name.removeprefix("text_model."), weight


def openclip_tensors(prefix: str, encoder: Any) -> Iterator[tuple[str, Tensor]]:
    state = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}
    last = f"encoder.layers.{VIT_H_BLOCKS - 2}."
    if "text_projection.weight" not in state and encoder.config.num_hidden_layers == VIT_H_BLOCKS - 1:
        # Some programs load the last block without using it. A block of zeros passes its input on unchanged.
        following = last.replace(str(VIT_H_BLOCKS - 2), str(VIT_H_BLOCKS - 1))
        state |= {n.replace(last, following): torch.zeros_like(w) for n, w in state.items() if n.startswith(last)}
    for name, weight in state.items():
        if match := re.fullmatch(r"(.+)\.self_attn\.q_proj\.(weight|bias)", name):
            block, kind = openclip_name(match[1]), match[2]
            three = [state[f"{match[1]}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            yield f"{prefix}{block}.attn.in_proj_{kind}", torch.cat(three)
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            yield prefix + openclip_name(name), weight.T if name == "text_projection.weight" else weight


def prediction_marks(scheduler: Any) -> Iterator[tuple[str, Tensor]]:
    """Empty tensors whose names tell ComfyUI and Forge that an SDXL UNet predicts v, not the noise."""
    if scheduler.prediction_type == "v_prediction":
        yield "v_pred", torch.zeros(0)
        if scheduler.get("rescale_betas_zero_snr"):
            yield "ztsnr", torch.zeros(0)


def write_single_file(file: Path, pipeline: Any, *, title: str, dtype: torch.dtype = torch.float16) -> None:
    """Write the pipeline's weights, in `dtype` unless a tensor overflows in it, and a header with `title`. Raises UserError as
    `single_file_tensors` does.
    """
    tensors = {name: in_type(weight, dtype).cpu() for name, weight in single_file_tensors(pipeline)}
    header = model_spec(architecture(pipeline.unet.config), title)
    predicts = pipeline.scheduler.config.prediction_type
    header[f"{SPEC}prediction_type"] = "v" if predicts == "v_prediction" else predicts
    write_tensors(file, tensors, header)
