"""Options of `ortho convert`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from ortho_core.generators.lora_config import LoraList
from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import ModelPath, OutputPath
from rayjobs.verb.options import Nameless


class ConvertJob(BaseModel):
    """Write a model as one file for ComfyUI, Forge and A1111: `ortho convert MODEL`. A pipeline becomes a checkpoint with the
    original tensor names. A LoRA folder becomes a LoRA in kohya's format. With `--out FOLDER` the result is a diffusers folder.
    `--lora` merges LoRAs into its weights: `ortho convert MODEL --lora FILE --out FOLDER`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[ModelPath, Nameless()] = resolved(
        description="model folder: a pipeline or a LoRA; the name --model may be left out"
    )
    lora: LoraList = resolved(
        (),
        description="LoRAs to merge into the model's weights: FILE[:WEIGHT],FILE[:WEIGHT], of diffusers or kohya format",
    )
    out: OutputPath | None = conduct(
        None,
        description="file NAME.safetensors, or a folder for a diffusers pipeline (none: MODEL.safetensors beside the model)",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = decides(
        "auto", description="precision of the weights in the result (auto: float16, for flow models bfloat16)"
    )
    merge: bool = decides(False, description="with a LoRA folder: write its base model with the LoRA merged in")
