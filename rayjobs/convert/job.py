"""`ortho convert`: write a pipeline as one checkpoint or a folder, with LoRAs merged in; or a LoRA folder as kohya's LoRA.

Runs in this process, without a cluster.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ortho_core.errors import UserError
from ortho_core.generators.imports import quick_imports
from ortho_core.generators.kohya import write_kohya
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import read_lora
from ortho_core.generators.lora_files import LORA_WEIGHTS
from ortho_core.generators.model_card import model_card
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder
from ortho_core.generators.origin import CONVERTED, base_name, model_name, origin_of, write_conversion
from ortho_core.generators.shared_files import written_here
from ortho_core.generators.single_file import write_single_file
from ortho_core.storage.folders import replace_folder
from ortho_core.storage.location import place_name
from rayjobs.convert.config import ConvertJob
from rayjobs.verb.console import say

SUFFIX = ".safetensors"
#: Suffixes of other model formats. An --out with one of them is refused, since it is not meant as a folder.
OTHER_FILES = (".bin", ".ckpt", ".gguf", ".onnx", ".pt", ".pth", ".safetensor")


@dataclass(frozen=True)
class Form:
    """A form of the result: its name in messages, and how it is used."""

    what: str
    next: str


LORA = Form("LoRA in kohya's format", "copy it to ComfyUI/models/loras, or models/Lora of Forge and A1111")
CHECKPOINT = Form(
    "checkpoint with the original tensor names",
    "copy it to ComfyUI/models/checkpoints, or models/Stable-diffusion of Forge and A1111",
)
DIFFUSERS_FOLDER = Form(
    "diffusers folder", "use it as --model of every verb; assignments of the model before conversion fit it"
)


def opened(job: ConvertJob) -> tuple[ModelFolder, Path, Form]:
    """The model, the file or folder to write, and its form. Raises UserError for what cannot be converted."""
    model = ModelFolder.open(job.model)
    if model.kind == CLASS_KIND:
        raise UserError(
            f"--model {job.model} is a class-conditional model, which other programs cannot load; accepted: pipelines and LoRAs"
        )
    if job.merge and model.lora_base is None:
        raise UserError(f"--merge: {job.model} is not a LoRA folder; leave --merge out")
    if job.lora and job.out is None:
        raise UserError("--lora needs --out FOLDER (or NAME.safetensors) for the model with the LoRA merged in")
    out = job.out or model.path.with_name(f"{model.path.name.removesuffix(SUFFIX)}{SUFFIX}")
    if out.suffix in OTHER_FILES:
        raise UserError(
            f"--out {out}: the format {out.suffix} is not written; accepted: a name that ends in {SUFFIX}, or a folder"
        )
    form = DIFFUSERS_FOLDER if out.suffix != SUFFIX else CHECKPOINT
    if model.lora_base is not None and not job.merge:
        if job.lora or form is DIFFUSERS_FOLDER:
            raise UserError(
                f"--model {job.model} is a LoRA folder: add --merge to write its base model with the LoRA merged in"
            )
        form = LORA
    if form is not DIFFUSERS_FOLDER and not (model.kind == CLASS_KIND or model.adapter.has_single_file):
        instead = (
            f"diffusers reads {model.path / LORA_WEIGHTS}" if form is LORA else "accepted: --out FOLDER, for diffusers"
        )
        raise UserError(f"--model {job.model}: a {model.kind} is not written as one file; {instead}")
    if not _replaceable(out, form, model):
        raise UserError(f"--out {out} exists and was not written by ortho, so it is not replaced; choose another name")
    return model.with_loras(job.lora), out, form


def _replaceable(out: Path, form: Form, model: ModelFolder) -> bool:
    """Whether `out` may be written: it does not exist, is empty, or was written by ortho."""
    if not out.exists():
        return True
    if form is DIFFUSERS_FOLDER:
        return out.is_dir() and ((out / CONVERTED).is_file() or not any(out.iterdir()))
    return out.is_file() and not out.samefile(model.path) and written_here(out)


def computed(job: ConvertJob, model: ModelFolder) -> str:
    """The precision of the result; `auto` is the half precision that the model was made for."""
    return job.dtype if job.dtype != "auto" else model.half or "float32"


def describe(job: ConvertJob) -> dict[str, Any]:
    """What a dry run prints."""
    model, out, form = opened(job)
    return {
        "model": str(job.model),
        "kind": model.kind,
        "written": form.what,
        "dtype": computed(job, model),
        "out": str(out),
    }


def run(job: ConvertJob) -> int:
    """Write the file or the folder. Returns 0. Raises UserError."""
    model, out, form = opened(job)
    title, stored = "/".join(model.path.parts[-2:]), computed(job, model)
    dtype = getattr(torch, stored)
    out.parent.mkdir(parents=True, exist_ok=True)
    if form is LORA:
        lora, weights = read_lora(model.path / LORA_WEIGHTS)
        write_kohya(out, weights, lora, model.network_config, title=title, base=base_name(model.base.path), dtype=dtype)
    else:
        # diffusers takes seconds to import; a dry run needs none of it.
        with quick_imports():
            from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

        generator = load_generator(model, dtype=stored)
        assert isinstance(generator, DiffusersGenerator)
        if form is DIFFUSERS_FOLDER:
            write_folder(job, model, generator, out)
        else:
            write_single_file(out, generator.pipeline, title=title, dtype=dtype)
    files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
    say(f"{out}, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB: a {form.what}; {form.next}")
    return 0


def write_folder(job: ConvertJob, model: ModelFolder, generator: Any, out: Path) -> None:
    """Write the pipeline with a model card, and a record of the fingerprint of the model that it was converted from."""
    origin = origin_of(model.base.path)
    card = model_card(
        f"{model_name(model.path)}{' with ' if job.lora else ''}{', '.join(place_name(each.file) for each in job.lora)}",
        base=base_name(model.base.path),
        model=model,
        facts={
            **({} if origin is None else {"base model": origin}),
            "converted from": f"{model_name(model.path)} (fingerprint {model.fingerprint})",
            **(
                {"with": ", ".join(f"{place_name(each.file)}:{each.weight:g}" for each in job.lora)} if job.lora else {}
            ),
            "precision": computed(job, model),
        },
        metrics={},
        config={},
        lora=False,
        made="put together",
    )

    def write(aside: Path) -> None:
        generator.save(aside, card)
        write_conversion(aside, ModelFolder.open(aside).fingerprint, model.fingerprint)

    replace_folder(out, write)
