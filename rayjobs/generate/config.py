"""Options of `ortho generate`."""

from typing import Literal

from ortho_core.generators.lora_config import LoraList
from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import LocalPath, ModelPath, OutputPath
from rayjobs.verb.image_size import SizeSettings
from rayjobs.verb.precision import Precision
from rayjobs.verb.resources import DeviceSettings


class GenerateJob(Precision, DeviceSettings, SizeSettings):
    """Make images of one prompt, or of each prompt of a file."""

    model: ModelPath = resolved(description="model: a diffusers folder, a LoRA folder, or a single-file checkpoint")
    lora: LoraList = resolved(
        (), description="LoRAs to add to the model's weights: FILE[:WEIGHT],FILE[:WEIGHT], of diffusers or kohya format"
    )
    out: OutputPath = conduct(
        description="folder for the images, pairs.jsonl (prompts and seeds) and grid.png; the same command again resumes"
    )
    prompt: str | None = decides(None, min_length=1, description="the prompt; this or --prompts is required")
    prompts: LocalPath | None = resolved(
        None, description="file of prompts: .txt (one per line), .jsonl (`prompt` of each line) or .json (a list)"
    )
    count: int | None = resolved(None, ge=1, description="with --prompt: how many images (none: 16)")
    images_per_prompt: int | None = resolved(
        None, ge=1, description="with --prompts: images per prompt (none: 1; 4 for geneval)"
    )
    layout: Literal["plain", "geneval", "hpsv2"] = decides(
        "plain", description="with --prompts: names of the image files, plain or as the benchmark expects them"
    )
    seed: int = decides(
        0, ge=0, description="decides the noise; a larger count adds images and keeps the first ones as they are"
    )
    batch_size: int = conduct(16, ge=1, description="images per batch; halved if memory runs out")
