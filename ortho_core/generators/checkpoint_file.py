"""Single-file checkpoints: one `.safetensors` with all weights of a pipeline, in the names of the original repositories.

Such a file has no configurations. They are taken from a folder beside it, `NAME/` of `NAME.safetensors`, or the folder that
the file lies in, if that is a diffusers pipeline's; else from `families/` here, which has those of one-step models.
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
#: The merges of CLIP's vocabulary, which the tokenizers of all families have.
MERGES_FILE = FAMILIES / "clip-merges.txt.xz"
UNET_WEIGHTS, VAE = "model.diffusion_model.", "first_stage_model."
#: What the names of a part's tensors begin with, by the pipeline's class.
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
    """Models of one shape."""

    name: str
    #: The model whose scheduler and image size `families/` has for it.
    like: str
    #: A tensor by which it is recognised, and its last axis.
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
    """A single-file checkpoint with the configurations that it is read with."""

    configs: PipelineFiles
    #: The family whose configurations are the built-in ones; None if a folder beside the file has them.
    family: Family | None

    @staticmethod
    def read(file: Path) -> "CheckpointFile":
        """Recognise a checkpoint by the names and shapes in its head. Raises UserError for a file that is none."""
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
        raise UserError(f"{file} is a LoRA: give --model the model that it is for, and --lora this file")
    if LATENT not in shapes:
        first = next(iter(shapes), "nothing")
        raise UserError(
            f"{file} is no checkpoint of Stable Diffusion 1, 2 or XL: it has {first}, ... and no {LATENT}; of a part or a "
            "pipeline in diffusers' format, give the pipeline's folder"
        )
    if (channels := shapes[LATENT][1]) != 4:
        raise UserError(
            f"{file} takes {channels} channels, as models for inpainting and editing do; accepted: text-to-image, 4 channels"
        )


def _family_of(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    for family in BUILT_IN:
        if (shape := shapes.get(family.mark)) is not None and shape[-1] == family.width:
            return family
    raise UserError(
        f"{file} is of no family whose configurations are built in ({', '.join(each.like for each in BUILT_IN)}): put a "
        f"diffusers folder of its kind, which needs no weights, beside it as {file.with_suffix('')}"
    )


@cache
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Numbers of CLIP's tokens, and its merges in their order (Radford et al. 2021)."""
    # The printable bytes stand for themselves, the others for letters from 256 on.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]
    lines = lzma.decompress(MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges
