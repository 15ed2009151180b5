"""Options of `ortho convert`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import ModelPath, OutputPath
from rayjobs.verb.options import Nameless


class ConvertJob(BaseModel):
    """Write a model as one file for ComfyUI, Forge and A1111: `ortho convert MODEL`. A pipeline's folder becomes a checkpoint in
    the original names, a LoRA folder a LoRA in kohya's format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[ModelPath, Nameless()] = resolved(
        description="model folder: a pipeline's or a LoRA's; also without --model before it"
    )
    out: OutputPath | None = conduct(None, description="the file (none: MODEL.safetensors, beside the folder)")
    dtype: Literal["float16", "bfloat16", "float32"] = decides("float16", description="precision of the file's weights")
    merge: bool = decides(False, description="of a LoRA folder: its base with the LoRA merged in, as one checkpoint")
