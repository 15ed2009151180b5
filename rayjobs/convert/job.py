"""`ortho convert`: a pipeline's folder as one checkpoint, a LoRA folder as kohya's LoRA. No cluster."""

from pathlib import Path
from typing import Any

import torch

from ortho_core.errors import UserError
from ortho_core.generators.kohya import write_kohya
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import read_lora
from ortho_core.generators.lora_files import LORA_WEIGHTS
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder
from ortho_core.generators.origin import base_name
from ortho_core.generators.part_files import read_json
from ortho_core.generators.shared_files import written_here
from ortho_core.generators.single_file import write_single_file
from rayjobs.convert.config import ConvertJob
from rayjobs.verb.console import say

SUFFIX = ".safetensors"
#: What a file is, by whether it is of an adapter, and where other programs look for it.
WRITTEN = {
    True: ("LoRA in kohya's format", "ComfyUI/models/loras, or models/Lora of Forge and A1111"),
    False: (
        "checkpoint in the original names",
        "ComfyUI/models/checkpoints, or models/Stable-diffusion of Forge and A1111",
    ),
}


def opened(job: ConvertJob) -> tuple[ModelFolder, Path, bool]:
    """The model, the file to write, and whether that is of an adapter. Raises UserError for what cannot be converted."""
    model = ModelFolder.open(job.model)
    if model.kind == CLASS_KIND:
        raise UserError(f"--model {job.model} is class-conditional, which other programs do not load")
    if job.merge and model.lora_base is None:
        raise UserError(f"--merge: {job.model} is no LoRA folder; leave it out")
    out = job.out or model.path.with_name(f"{model.path.name.removesuffix(SUFFIX)}{SUFFIX}")
    if out.suffix != SUFFIX:
        raise UserError(
            f"--out {out}: other programs know the format by its name; accepted: a name that ends in {SUFFIX}"
        )
    if out.is_dir() or (out.exists() and (out.samefile(model.path) or not written_here(out))):
        raise UserError(
            f"--out {out} is there, and was not written by ortho: it would be replaced; choose another name"
        )
    return model, out, model.lora_base is not None and not job.merge


def describe(job: ConvertJob) -> dict[str, Any]:
    """What a dry run prints."""
    model, out, adapter = opened(job)
    what, _ = WRITTEN[adapter]
    return {"model": str(job.model), "kind": model.kind, "written": what, "dtype": job.dtype, "out": str(out)}


def run(job: ConvertJob) -> int:
    """Write the file. Returns 0. Raises UserError."""
    model, out, adapter = opened(job)
    title, dtype = "/".join(model.path.parts[-2:]), getattr(torch, job.dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    if adapter:
        lora, weights = read_lora(model.path / LORA_WEIGHTS)
        unet = read_json((model.base.configs or model.base.path) / "unet" / "config.json")
        write_kohya(out, weights, lora, unet, title=title, base=base_name(model.base.path), dtype=dtype)
    else:
        # diffusers takes seconds to import; a dry run needs none of it.
        from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

        generator = load_generator(model, dtype=job.dtype)
        assert isinstance(generator, DiffusersGenerator)
        write_single_file(out, generator.pipeline, title=title, dtype=dtype)
    what, where = WRITTEN[adapter]
    say(f"{out}, {out.stat().st_size / 1e6:,.1f} MB: a {what}; copy it to {where}")
    return 0
