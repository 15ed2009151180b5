"""The description of a model from its diffusers pipeline folder, read without loading weights."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
from ortho_core.generators.pipelines.adapter import PartConfig
from ortho_core.generators.pipelines.kinds import ADAPTERS
from ortho_core.generators.recipe import OneStepRecipe

#: The file that makes a folder a pipeline folder.
INDEX = "model_index.json"
#: The parts that compute in float32, whatever the precision of the others.
FLOAT32 = ("vae",)
SCHEDULER = "scheduler/scheduler_config.json"
#: Optional file of a pipeline: the timestep that the weights were distilled for, the sizes of images (buckets) that they were
#: trained at, and the guidance scale that the network gets, where it is an input, e.g.
#: {"timestep": 800, "buckets": ["640x448", "512x512", "448x640"]} or {"guidance": 4.5}.
RECIPE = "one_step.json"
RECIPE_ENTRIES = ("timestep", "buckets", "guidance")


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
    #: Pixels of which the sides of images of other sizes must be multiples.
    size_multiple: int
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
        adapter = ADAPTERS[kind]
        network, autoencoder = (
            PartConfig(contents[f"{name}/config.json"], folder / name / "config.json")
            for name in (adapter.network, "vae")
        )
        shape, image_size = adapter.shapes(network, autoencoder)
        factor = image_size[0] // shape[1]
        step = contents.get(RECIPE, {})
        timestep, buckets = _timestep(step, folder / RECIPE), _buckets(step, folder / RECIPE)
        guidance = _guidance(step, folder / RECIPE)
        try:
            adapter.guidance_input(network.content, guidance)
        except ValueError as error:
            raise UserError(f"{folder / RECIPE}: {error}") from None
        return PipelineFiles(
            folder=folder,
            kind=kind,
            parts=parts,
            latent_shape=shape,
            image_size=image_size,
            size_multiple=factor * adapter.required_multiple(network.content),
            recipe=OneStepRecipe(parts["scheduler"][1], contents[SCHEDULER], timestep, buckets, guidance),
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
    if not isinstance(kind, str) or kind not in ADAPTERS:
        raise UserError(f"{file} names a {kind or 'pipeline without _class_name'}; accepted: {', '.join(ADAPTERS)}")
    parts = {}
    for name in ADAPTERS[kind].parts:
        value = index.get(name) or [None, None]
        if value == [None, None]:
            if name not in ADAPTERS[kind].optional:
                raise UserError(f"{file} names no {name}, which a {kind} needs")
            continue
        pair = isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
        if not pair or value[0] not in STEMS:
            raise UserError(f"{file}: {name} is {json.dumps(value)}; accepted: [{' or '.join(STEMS)}, name of a class]")
        parts[name] = (value[0], value[1])
    return kind, parts


def _timestep(recipe: Mapping[str, object], file: Path) -> int | None:
    if unknown := sorted(recipe.keys() - set(RECIPE_ENTRIES)):
        raise UserError(f"{file} has unknown entries {unknown}; accepted: {', '.join(RECIPE_ENTRIES)}")
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


def _guidance(recipe: Mapping[str, object], file: Path) -> float | None:
    guidance = recipe.get("guidance")
    if guidance is None:
        return None
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not (0 <= guidance < math.inf):
        raise UserError(f"{file}: guidance is {guidance!r}; accepted: a number, 0 or above")
    return float(guidance)
