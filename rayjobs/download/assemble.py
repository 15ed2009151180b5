"""Make a model folder of a base pipeline and weights that are published separately: a UNet's weights or a LoRA."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import diffusers
import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from ortho_core.errors import UserError
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.pipeline_files import RECIPE, read_index
from ortho_core.generators.pipeline_loading import pipeline_class
from ortho_core.generators.pipelines.kinds import ADAPTERS
from ortho_core.rewards.base import read_weights
from ortho_core.storage.folders import replace_folder
from ortho_core.storage.store import one_line
from rayjobs.verb.catalog import Recipe


def assemble(
    how: Literal["lora", "unet"],
    base: Path,
    weights: Path,
    into: Path,
    recipe: Recipe,
    finish: Callable[[Path], object] | None = None,
) -> None:
    """Write the pipeline in `base` with another UNet, or a LoRA merged in, and the recipe's scheduler for its one step.

    The folder `into` appears complete or not at all; `finish` may add files to it before it appears. Raises UserError for
    weights that do not fit the base, and for a scheduler that cannot take such a step.
    """
    name, _ = read_index(base)  # not `ModelFolder.open`: a base may come without its UNet's weights
    parts = dict(ADAPTERS[name].left_out) | ({"unet": _unet(base, weights)} if how == "unet" else {})
    try:
        pipeline = pipeline_class(name).from_pretrained(base, local_files_only=True, use_safetensors=True, **parts)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"model folder {base} does not load as {name}: {str(error).splitlines()[0]}") from error
    if how == "lora":
        _merge(pipeline, weights)
    pipeline.scheduler = scheduler_of(recipe, pipeline.scheduler)
    OneStep.of(pipeline.scheduler, recipe.timestep)

    def write(folder: Path) -> None:
        pipeline.save_pretrained(folder, safe_serialization=True)
        (folder / RECIPE).write_text(json.dumps({"timestep": recipe.timestep}) + "\n")
        if finish is not None:
            finish(folder)

    replace_folder(into, write)


def scheduler_of(recipe: Recipe, base: SchedulerMixin) -> SchedulerMixin:
    """The recipe's scheduler: the configuration is the base scheduler's, with the recipe's prediction type and options.

    Raises UserError for options that the scheduler does not have.
    """
    kind = getattr(diffusers, recipe.scheduler)
    # `from_config` drops names that it does not know.
    if unknown := recipe.options.keys() - inspect.signature(kind.__init__).parameters.keys():
        raise UserError(f"{recipe.scheduler} has no options {', '.join(sorted(unknown))}")
    scheduler: SchedulerMixin = kind.from_config(base.config, prediction_type=recipe.prediction_type, **recipe.options)
    return scheduler


def _unet(base: Path, weights: Path) -> UNet2DConditionModel:
    """The base's UNet with the weights of a .safetensors or PyTorch file, in the file's precision."""
    if weights.suffix == ".safetensors":
        try:
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{weights} is not a safetensors file: {error}") from error
    else:
        state = read_weights(weights, "--only")
    # On "meta" no random weights are made, and only one copy of the weights is in memory.
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
