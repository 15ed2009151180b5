"""The precision of the weights that do not train."""

import torch

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.update import half_dtype
from rayjobs.train.config import TrainSettings

#: The dtypes that a network computes in, by their names in options.
COMPUTES_IN = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def halved(job: TrainSettings, device: torch.device) -> bool:
    """Whether the frozen weights are in half precision. FSDP needs weights of one type."""
    return bool(job.lora_rank) and half_dtype(device, job) is not None and job.parallel == "ddp"


def frozen_in(job: TrainSettings, model: ModelFolder, device: torch.device) -> str:
    """The precision of a model's weights that do not train, such as those of the text encoders."""
    return COMPUTES_IN[half_dtype(device, job, model.half)] if halved(job, device) else "float32"
