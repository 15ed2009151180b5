"""A model folder out of weights that are published apart: a UNet's, or a LoRA, on top of a base pipeline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import diffusers
import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from ortho_core.errors import UserError
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.pipeline_files import RECIPE, read_index
from ortho_core.generators.pipeline_loading import CLASSES, LEFT_OUT
from ortho_core.rewards.base import read_weights
from ortho_core.storage.folders import replace_folder
from ortho_core.storage.store import one_line


def assemble(
    how: Literal["lora", "unet"],
    base: Path,
    weights: Path,
    into: Path,
    scheduler: str,
    prediction_type: str,
    timestep: int,
    finish: Callable[[Path], object] | None = None,
) -> None:
    """Write the pipeline in `base` with another UNet, or a LoRA merged in, and the scheduler for one step at `timestep`.

    The folder `into` appears whole or not at all; `finish` may add to it before it does. Raises UserError for weights that
    do not fit the base, and a scheduler that cannot take such a step.
    """
    name, _ = read_index(base)  # all there is to open: a base may come without its UNet's weights
    parts = LEFT_OUT[name] | ({"unet": _unet(base, weights)} if how == "unet" else {})
    try:
        pipeline = CLASSES[name].from_pretrained(base, local_files_only=True, use_safetensors=True, **parts)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model folder {base} does not load as {name}: {str(error).splitlines()[0]}") from error
    if how == "lora":
        _merge(pipeline, weights)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(
        pipeline.scheduler.config, prediction_type=prediction_type
    )
    OneStep.of(pipeline.scheduler, timestep)

    def write(folder: Path) -> None:
        pipeline.save_pretrained(folder, safe_serialization=True)
        (folder / RECIPE).write_text(json.dumps({"timestep": timestep}) + "\n")
        if finish is not None:
            finish(folder)

    replace_folder(into, write)


def _unet(base: Path, weights: Path) -> UNet2DConditionModel:
    """The base's UNet with the weights in a file, .safetensors or PyTorch's, in the precision they have there."""
    if weights.suffix == ".safetensors":
        try:
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{weights} is not a file of safetensors: {error}") from error
    else:
        state = read_weights(weights, "--only")
    # Weights that no random initialisation is spent on, and memory for one copy of them.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))
    try:
        unet.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit the UNet of {base}: {one_line(error)}") from error
    return unet


def _merge(pipeline: diffusers.DiffusionPipeline, weights: Path) -> None:
    try:
        pipeline.load_lora_weights(weights.parent, weight_name=weights.name, local_files_only=True)
        pipeline.fuse_lora()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights} is not a LoRA of this base: {str(error).splitlines()[0]}") from error
    pipeline.unload_lora_weights()
