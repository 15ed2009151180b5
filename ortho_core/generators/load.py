"""Load the generator of a model folder."""

from pathlib import Path

import torch

from ortho_core.errors import UserError
from ortho_core.generators.model_folder import CLASS_KIND, base_folder_of, check_model_folder, model_fingerprint
from ortho_core.generators.protocol import OneStepGenerator


def merge_lora(lora_folder: Path, out: Path, card: str | None = None) -> None:
    """Write the ordinary model folder `out` with the LoRA folder's adapter merged into its base.

    Raises UserError if `lora_folder` is no LoRA folder, or `out` would replace it or its base.
    """
    lora_folder, out = Path(lora_folder), Path(out)
    base = base_folder_of(lora_folder)
    if base == lora_folder:
        raise UserError(f"{lora_folder} is not a LoRA folder (no lora.json in it): there is nothing to merge")
    for source in (base, lora_folder):
        if source.resolve().is_relative_to(out.resolve()):
            raise UserError(f"the merged model {out} would replace {source}; choose another place")
    load_generator(lora_folder).save(out, card)


def load_generator(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    *,
    gradient_checkpointing: bool = False,
    keep_adapter: bool = False,
) -> OneStepGenerator:
    """Load the generator in `folder` onto `device`, its network in `dtype`, its weights frozen.

    `gradient_checkpointing` computes activations twice to keep fewer of them. A LoRA folder's adapter is merged into the
    network; `keep_adapter` leaves it apart and trainable, in float32. Raises UserError as `check_model_folder` and
    `model_fingerprint` do.
    """
    folder = Path(folder)
    name, base = check_model_folder(folder), base_folder_of(folder)
    if name == CLASS_KIND:
        from ortho_core.generators.class_conditional import ClassGenerator

        if gradient_checkpointing:
            raise UserError(
                f"--gradient-checkpointing: {folder} is class-conditional and too small for it; leave it out"
            )
        return ClassGenerator.load(folder, torch.device(device), getattr(torch, dtype))
    lora = None if base == folder else folder
    if lora is not None:
        model_fingerprint(lora)  # is the base still the one that the adapter was trained on?
    # diffusers takes seconds to import; a driver that only checks and plans never needs it.
    from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

    generator = DiffusersGenerator.load(
        name, base, torch.device(device), getattr(torch, dtype), lora=lora, keep_adapter=keep_adapter
    )
    if gradient_checkpointing:
        generator.pipeline.unet.enable_gradient_checkpointing()
    return generator
