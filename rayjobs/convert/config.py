"""Options of `ortho convert`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from ortho_core.generators.lora_config import LoraList
from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import ModelPath, OutputPath
from rayjobs.verb.options import Nameless


class ConvertJob(BaseModel):
    """Write a model as one file for ComfyUI, Forge and A1111: `ortho convert MODEL`. A pipeline's folder becomes a checkpoint in
    the original names, a LoRA folder a LoRA in kohya's format. With `--out FOLDER` it becomes a diffusers folder, and LoRAs are a
    part of it from then on: `ortho convert MODEL --lora FILE --out FOLDER`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[ModelPath, Nameless()] = resolved(
        description="model folder: a pipeline's or a LoRA's; also without --model before it"
    )
    lora: LoraList = resolved(
        (),
        description="LoRAs to merge into the model's weights: FILE[:WEIGHT],FILE[:WEIGHT], of diffusers or kohya format",
    )
    out: OutputPath | None = conduct(
        None,
        description="the file, NAME.safetensors, or a folder for a diffusers pipeline (none: MODEL.safetensors beside the model)",
    )
    dtype: Literal["float16", "bfloat16", "float32"] = decides(
        "float16", description="precision of the weights written"
    )
    merge: bool = decides(False, description="of a LoRA folder: its base with the LoRA merged in, as a whole model")
