"""Single-file checkpoints: one `.safetensors` with all weights of a pipeline, with the names of the original repositories.

Such a file has no configurations. They come from the folder `NAME/` beside `NAME.safetensors`, or from the file's own folder, if
it is a diffusers pipeline; else from the built-in `families/`, which has those of one-step models.
"""

import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.generators.part_files import shapes_of
from ortho_core.generators.pipeline_files import INDEX, PipelineFiles
from ortho_core.storage.hashes import content_hash

SUFFIX = ".safetensors"
FAMILIES = Path(__file__).parent / "families"
#: The merges of CLIP's vocabulary, which the tokenizers of all families share.
MERGES_FILE = FAMILIES / "clip-merges.txt.xz"
UNET_WEIGHTS, VAE = "model.diffusion_model.", "first_stage_model."
#: Prefixes of the tensor names of each part, by the pipeline's class.
PREFIXES = {
    "StableDiffusionXLPipeline": {
        "unet": UNET_WEIGHTS,
        "vae": VAE,
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
    },
    "StableDiffusionPipeline": {"unet": UNET_WEIGHTS, "vae": VAE, "text_encoder": "cond_stage_model."},
}
LATENT = f"{UNET_WEIGHTS}input_blocks.0.0.weight"


@dataclass(frozen=True)
class Family:
    """Models with the same network shapes."""

    name: str
    #: The model whose scheduler and image size `families/` contains.
    like: str
    #: A tensor by which the family is recognised, and the length of its last axis.
    mark: str
    width: int


BUILT_IN = (
    Family("sdxl", "SDXL Turbo", "conditioner.embedders.1.model.token_embedding.weight", 1280),
    Family("sd2", "SD Turbo", "cond_stage_model.model.token_embedding.weight", 1024),
    Family(
        *("sd1", "a one-step SD 1.5"),
        *("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", 768),
    ),
)


@dataclass(frozen=True)
class CheckpointFile:
    """A single-file checkpoint with its configurations."""

    configs: PipelineFiles
    #: The family whose built-in configurations are used; None if a folder beside the file has them.
    family: Family | None

    @staticmethod
    def read(file: Path) -> "CheckpointFile":
        """Recognise a checkpoint by the names and shapes in its header. Raises UserError if the file is not a checkpoint."""
        if file.suffix != SUFFIX:
            raise UserError(
                f"model {file} is a {file.suffix or 'plain'} file; accepted: the folder of a diffusers pipeline, or a "
                f"single-file checkpoint in {SUFFIX}"
            )
        shapes = shapes_of(file)
        _refuse_other_files(file, shapes)
        for folder in (file.with_suffix(""), file.parent):
            if (folder / INDEX).is_file():
                configs, family = PipelineFiles.read(folder, weights=False), None
                break
        else:
            family = _family_of(file, shapes)
            configs = PipelineFiles.read(FAMILIES / family.name, weights=False, vocabulary=content_hash(MERGES_FILE))
        for part, prefix in PREFIXES[configs.kind].items():
            if part in configs.parts and not any(name.startswith(prefix) for name in shapes):
                raise UserError(f"{file} has no {part} ({prefix}...), which a {configs.kind} needs")
        return CheckpointFile(configs, family)


def _refuse_other_files(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if any("lora_" in name or ".lora." in name for name in shapes):
        raise UserError(f"{file} is a LoRA: give the model that it is for to --model, and this file to --lora")
    if LATENT not in shapes:
        first = next(iter(shapes), "nothing")
        raise UserError(
            f"{file} is not a checkpoint of Stable Diffusion 1, 2 or XL: it has {first}, ... and no {LATENT}; if it is part of a "
            "pipeline in diffusers' format, give the pipeline's folder"
        )
    if (channels := shapes[LATENT][1]) != 4:
        raise UserError(
            f"{file} has {channels} input channels, like models for inpainting and editing; accepted: text-to-image, 4 channels"
        )


def _family_of(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    for family in BUILT_IN:
        if (shape := shapes.get(family.mark)) is not None and shape[-1] == family.width:
            return family
    raise UserError(
        f"{file} has no built-in configurations (there are some for {', '.join(each.like for each in BUILT_IN)}): put a "
        f"diffusers folder of such a model, which needs no weights, beside it as {file.with_suffix('')}"
    )


@cache
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids of CLIP's tokens, and its merges in order (Radford et al. 2021)."""
    # Printable bytes map to themselves, other bytes to the characters from 256 on.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]
    lines = lzma.decompress(MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges
