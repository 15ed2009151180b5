"""The description of a model from its diffusers pipeline folder, read without loading weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.framing.image_size import normalised
from ortho_core.generators.part_files import (
    AGAIN,
    STEMS,
    check_file,
    check_safetensors,
    json_hash,
    read_json,
    tokenizer_files,
    weights_of,
)
from ortho_core.generators.recipe import OneStepRecipe

#: The file that makes a folder a pipeline folder.
INDEX = "model_index.json"
#: The supported diffusers pipeline classes, and the parts that each is loaded with. Other parts that a pipeline may name, for
#: example a safety checker, are not used in the one step.
PIPELINES = {
    "StableDiffusionPipeline": ("scheduler", "text_encoder", "tokenizer", "unet", "vae"),
    "StableDiffusionXLPipeline": (
        *("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"),
    ),
}
#: Parts that a pipeline may lack; its index then names them `[null, null]`.
OPTIONAL = {"StableDiffusionPipeline": (), "StableDiffusionXLPipeline": ("text_encoder", "tokenizer")}
#: The parts that compute in float32, whatever the precision of the others.
FLOAT32 = ("vae",)
SCHEDULER = "scheduler/scheduler_config.json"
#: Optional file of a pipeline: the timestep that the weights were distilled for, and the sizes of images (buckets) that they
#: were trained at, e.g. {"timestep": 800, "buckets": ["640x448", "512x512", "448x640"]}.
RECIPE = "one_step.json"


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline's folder: the facts from its configurations, and the names of its other files."""

    folder: Path
    kind: str
    #: Library and class of each part that is loaded.
    parts: Mapping[str, tuple[str, str]]
    #: (C, H, W) of the noise map and the latent.
    latent_shape: tuple[int, int, int]
    #: (Y, X) in pixels.
    image_size: tuple[int, int]
    recipe: OneStepRecipe
    #: SHA-256 of each configuration's content, by its name in the folder.
    configurations: Mapping[str, str]
    #: Vocabulary files of tokenizers that are not JSON.
    vocabularies: tuple[Path, ...]
    #: The files of the weights by part and variant; empty if the folder was read with `weights=False`.
    weights: Mapping[str, Mapping[str, tuple[Path, ...]]]

    @staticmethod
    def read(folder: Path, *, weights: bool = True, vocabulary: str = "") -> "PipelineFiles":
        """Read and check a pipeline's folder; with `weights=False` only its configurations, because the weights are elsewhere.

        `vocabulary` is the SHA-256 of the built-in vocabulary, for tokenizers that have no vocabulary files. Raises UserError,
        naming the file and the remedy, for any fault.
        """
        kind, parts = read_index(folder)
        contents: dict[str, Mapping[str, object]] = {INDEX: {"_class_name": kind, **parts}}
        vocabularies: list[Path] = []
        files: dict[str, dict[str, tuple[Path, ...]]] = {}
        for name, (library, _) in parts.items():
            place = folder / name
            if not place.is_dir():
                raise UserError(f"{folder / INDEX} names a {name}, but there is no folder {place}: {AGAIN}")
            if name.startswith("tokenizer"):
                if vocabulary:
                    content = read_json(place / "tokenizer_config.json")
                    contents[f"{name}/tokenizer_config.json"] = content | {"vocabulary": vocabulary}
                    continue
                for file in tokenizer_files(place):
                    if file.suffix == ".json":
                        contents[f"{name}/{file.name}"] = read_json(file)
                    else:
                        vocabularies.append(check_file(file))
            elif name == "scheduler":
                contents[SCHEDULER] = read_json(folder / SCHEDULER)
            else:
                contents[f"{name}/config.json"] = read_json(place / "config.json")
                if weights:
                    files[name] = weights_of(place, library)
                    for each in files[name].values():
                        check_safetensors(each)
        if (folder / RECIPE).exists() and (recipe := read_json(folder / RECIPE)):
            contents[RECIPE] = recipe
        _, H, W = shape = _latent_shape(contents["unet/config.json"], folder / "unet" / "config.json")
        factor = _pixels_per_latent(contents["vae/config.json"], folder / "vae" / "config.json")
        step = contents.get(RECIPE, {})
        timestep, buckets = _timestep(step, folder / RECIPE), _buckets(step, folder / RECIPE)
        return PipelineFiles(
            folder=folder,
            kind=kind,
            parts=parts,
            latent_shape=shape,
            image_size=(H * factor, W * factor),
            recipe=OneStepRecipe(parts["scheduler"][1], contents[SCHEDULER], timestep, buckets),
            configurations={name: json_hash(content) for name, content in contents.items()},
            vocabularies=tuple(vocabularies),
            weights=files,
        )


def read_index(folder: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """The class of the pipeline in a folder, and the library and class of each part that is loaded.

    Raises UserError, naming the file, unless it is the index of a supported pipeline.
    """
    file = folder / INDEX
    index = read_json(file)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise UserError(f"{file} names a {kind or 'pipeline without _class_name'}; accepted: {', '.join(PIPELINES)}")
    parts = {}
    for name in PIPELINES[kind]:
        value = index.get(name) or [None, None]
        if value == [None, None]:
            if name not in OPTIONAL[kind]:
                raise UserError(f"{file} names no {name}, which a {kind} needs")
            continue
        pair = isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
        if not pair or value[0] not in STEMS:
            raise UserError(f"{file}: {name} is {json.dumps(value)}; accepted: [{' or '.join(STEMS)}, name of a class]")
        parts[name] = (value[0], value[1])
    return kind, parts


def _latent_shape(config: Mapping[str, object], file: Path) -> tuple[int, int, int]:
    C: Any = config.get("in_channels")
    size: Any = config.get("sample_size")
    H, W = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not all(type(n) is int and n > 0 for n in (C, H, W)):
        raise UserError(
            f"{file} does not state the latent's shape: in_channels {C!r}, sample_size {size!r}; accepted: a number of channels, "
            "and one side or [height, width]"
        )
    return C, H, W


def _pixels_per_latent(config: Mapping[str, object], file: Path) -> int:
    """Pixels per latent position along one side: each block of the autoencoder but one halves the image."""
    blocks = config.get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise UserError(
            f"{file} does not state the autoencoder's blocks: block_out_channels {blocks!r}; accepted: a list"
        )
    return int(2 ** (len(blocks) - 1))


def _timestep(recipe: Mapping[str, object], file: Path) -> int | None:
    if unknown := sorted(recipe.keys() - {"timestep", "buckets"}):
        raise UserError(f"{file} has unknown entries {unknown}; accepted: timestep, buckets")
    timestep = recipe.get("timestep")
    if timestep is not None and (type(timestep) is not int or timestep < 0):
        raise UserError(f"{file}: timestep is {timestep!r}; accepted: a whole number, 0 or above")
    return timestep


def _buckets(recipe: Mapping[str, object], file: Path) -> tuple[str, ...]:
    buckets = recipe.get("buckets", [])
    try:
        if not isinstance(buckets, list):
            raise ValueError("not a list")
        return tuple(dict.fromkeys(str(normalised(text)) for text in buckets))
    except ValueError:
        raise UserError(f"{file}: buckets is {buckets!r}; accepted: a list of sizes such as 640x448") from None
