"""Load the generator of a model folder."""

from pathlib import Path

import torch

from ortho_core.device import pick_device
from ortho_core.errors import UserError
from ortho_core.generators.imports import quick_imports
from ortho_core.generators.loaded_files import LoadedFiles
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder, check_quantize
from ortho_core.generators.precision import network_dtype
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.storage.planned import as_planned

#: Accepted values of `dtype`.
NETWORK_DTYPES = ("float32", "float16", "bfloat16", "auto")


def load_generator(
    folder: ModelFolder | str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    gradient_checkpointing: bool = False,
    keep_adapter: bool = False,
    quantize: str = "none",
) -> OneStepGenerator:
    """Load the generator in `folder` onto `device`, its network in `dtype`, its weights frozen (`MStep` makes them trainable).

    `folder` is a path (a diffusers folder, a LoRA folder, a `.safetensors` checkpoint) or an opened `ModelFolder`. `device` is a
    PyTorch device, or `auto`: a GPU if there is one. `dtype` is float32, float16, bfloat16, or `auto`: on a GPU the half
    precision that the model was made for, else float32.

    `gradient_checkpointing` computes activations twice to store fewer of them. A LoRA folder's adapter is merged into the
    network; with `keep_adapter` it stays separate and trainable, in float32. `quantize` (int8, nf4) packs the frozen weights
    after a merge. Raises UserError for weights that do not load, and for a LoRA folder as its `fingerprint` does.

    The files must have the hashes that `folder` has recorded for a plan or an earlier load; else UserError names the first that
    differs. The generator's `loaded_fingerprint` identifies the loaded files.
    """
    if not isinstance(folder, ModelFolder):
        folder = ModelFolder.open(Path(folder).expanduser())
    device = pick_device(device) if isinstance(device, str) else device
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in NETWORK_DTYPES:
        raise UserError(f"dtype {dtype!r} is not known; accepted: {', '.join(NETWORK_DTYPES)}")
    check_quantize(folder, quantize)
    if folder.lora_base is not None:
        _ = folder.fingerprint  # raises if the base is not the one that the adapter was trained on
    computes_in = network_dtype(dtype, device, folder.half)
    files = LoadedFiles(folder, str(computes_in).removeprefix("torch."))
    with as_planned(files.planned, files.now):
        generator = _load(folder, torch.device(device), computes_in, gradient_checkpointing, keep_adapter, quantize)
    generator.loaded_fingerprint = files.remember()
    return generator


def _load(
    folder: ModelFolder,
    device: torch.device,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    keep_adapter: bool,
    quantize: str,
) -> OneStepGenerator:
    if folder.kind == CLASS_KIND:
        from ortho_core.generators.class_conditional import ClassGenerator

        if gradient_checkpointing:
            raise UserError(
                f"--gradient-checkpointing: {folder.path} is class-conditional and too small for it; leave it out"
            )
        return ClassGenerator.load(folder, device, dtype)
    # Imported here: diffusers takes seconds, and a driver that only checks and plans does not need it.
    with quick_imports():
        from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

    generator = DiffusersGenerator.load(
        folder,
        device,
        dtype,
        keep_adapter=keep_adapter,
        quantize=quantize,
    )
    if gradient_checkpointing:
        generator.compute_twice()
    return generator
