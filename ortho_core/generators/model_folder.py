"""Model folders, opened and described without loading any weights.

A model folder is a diffusers pipeline, a class-conditional generator (`config.json` and its weights), or a *LoRA folder*: an
adapter's weights and a `lora.json` that names the pipeline folder, the base, which the adapter belongs to.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.part_files import AGAIN, STEMS, check_file, json_hash, read_json, tokenizer_files, weights_of
from ortho_core.generators.recipe import OneStepRecipe
from ortho_core.storage.hashes import content_hash

#: The file that makes a folder a pipeline's.
INDEX = "model_index.json"
#: The diffusers pipeline classes that are one-step generators to us, and the parts that each is loaded with. Others that a
#: pipeline may name, a safety checker for one, have no place in one step.
PIPELINES = {
    "StableDiffusionPipeline": ("scheduler", "text_encoder", "tokenizer", "unet", "vae"),
    "StableDiffusionXLPipeline": (
        *("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"),
    ),
}
#: Parts that a pipeline may be without: it names them `[null, null]`.
OPTIONAL = {"StableDiffusionPipeline": (), "StableDiffusionXLPipeline": ("text_encoder", "tokenizer")}
SCHEDULER = "scheduler/scheduler_config.json"
#: Optional file of a pipeline, with the timestep that the weights were distilled for, e.g. {"timestep": 800}.
RECIPE = "one_step.json"
#: The files of a class-conditional generator, and the `kind` that the first states.
CLASS_CONFIG, CLASS_WEIGHTS, CLASS_KIND = "config.json", "network.safetensors", "class-conditional"
#: The two files of a LoRA folder: which base it belongs to, and the weights, named as diffusers looks for them.
LORA_REFERENCE, LORA_WEIGHTS = "lora.json", "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds, read once; a job opens it and hands it on, to workers too.

    The path is absolute: a worker on another node finds the folder at the same place, or does not find it.
    """

    path: Path
    #: The pipeline class, of a LoRA folder its base's, or `class-conditional`.
    kind: str
    #: (C, H, W) of the noise map.
    latent_shape: tuple[int, int, int]
    #: (c, h, w) of what the network makes; a pipeline's is that of the noise map.
    target_shape: tuple[int, int, int]
    #: (Y, X) in pixels.
    image_size: tuple[int, int]
    #: How a pipeline takes its step; of a class-conditional generator there is nothing to say.
    recipe: OneStepRecipe | None
    #: Of a class-conditional generator.
    class_config: ClassConfig | None
    #: SHA-256 of what each configuration says, by its name in the folder.
    configurations: Mapping[str, str]
    #: Names of the other files that are loaded.
    files: tuple[str, ...]
    #: Of a LoRA folder, the model that its adapter belongs to, and the fingerprint that `lora.json` records of it.
    lora_base: "ModelFolder | None" = None
    recorded_fingerprint: str | None = None

    @staticmethod
    def open(folder: str | Path) -> "ModelFolder":
        """Read and check a folder's configurations. Raises UserError, naming the file and the remedy, for what is wrong.

        Of a LoRA folder's base it is not checked that it is the one recorded, which `fingerprint` does.
        """
        folder = Path(folder)
        try:
            if folder.is_file():
                raise UserError(f"model folder {folder} is a file; accepted: the folder of a diffusers pipeline")
            if not folder.is_dir():
                raise UserError(f"model folder {folder} does not exist (give a local folder, e.g. models/tiny-turbo)")
            return _open(folder.absolute())
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from error

    def with_adapter(self, folder: Path, recorded_fingerprint: str | None = None) -> "ModelFolder":
        """The LoRA folder whose adapter was trained on this model: as `lora.json` records, or as it is now."""
        return replace(
            self,
            path=folder.absolute(),
            configurations={},
            files=(check_file(folder / LORA_WEIGHTS).name,),
            lora_base=self,
            recorded_fingerprint=recorded_fingerprint or self.fingerprint,
        )

    @property
    def base(self) -> "ModelFolder":
        """Where the weights are that an adapter is added to; any folder that is no LoRA folder is its own."""
        return self if self.lora_base is None else self.lora_base

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that are the prompts of a class-conditional generator; of a pipeline none."""
        return () if self.class_config is None else self.class_config.classes

    @property
    def noise_scale(self) -> float:
        """s of x_T = s·ε, which the model's scheduler starts from. Raises UserError if it does not say."""
        if self.recipe is None:
            raise UserError(f"{self.path} has no scheduler to tell the scale of the noise; --noise-scale states it")
        try:
            return self.recipe.noise_scale()
        except UserError as error:
            raise UserError(f"{self.base.path / SCHEDULER} {error}") from error

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file that is loaded, by its name in the folder; JSON's is of what it says, not how it is laid out.

        Raises UserError for a file that cannot be read.
        """
        found = dict(self.configurations)
        for name in self.files:
            try:
                found[name] = content_hash(self.path / name)
            except OSError as error:
                raise UserError(f"{self.path / name} cannot be read: {error.strerror}") from error
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over the names and contents of what is loaded, wherever the folder lies and whatever else is
        in it. Of a LoRA folder: over the adapter's weights and the fingerprint of its base.

        Raises UserError if a base has another fingerprint than `lora.json` records.
        """
        digest = hashlib.sha256()
        if self.lora_base is not None:
            found, recorded = self.lora_base.fingerprint, self.recorded_fingerprint
            if found != recorded:
                raise UserError(
                    f"{self.path / LORA_REFERENCE}: the base model {self.lora_base.path} has fingerprint {found}, and the "
                    f"LoRA was trained on {recorded}; give base_model the folder of that model"
                )
            digest.update(f"base_fingerprint\0{recorded}\0".encode())
        return _over(self.hashes, digest)[:16]

    @property
    def text_fingerprint(self) -> str:
        """SHA-256 over what makes embeddings of prompts: models that share it have the same ones."""
        decisive = (INDEX, CLASS_CONFIG, "text_encoder", "tokenizer")
        hashes = {name: value for name, value in self.base.hashes.items() if name.startswith(decisive)}
        return _over(hashes, hashlib.sha256())

    @property
    def weight_bytes(self) -> int:
        """Size of the weights, about what a copy of the model takes on disk."""
        return sum((self.path / name).stat().st_size for name in self.files)


def write_lora_reference(folder: Path, base: ModelFolder) -> None:
    """Say in a LoRA folder which model its adapter belongs to."""
    content = {"base_model": str(base.path.resolve()), "base_fingerprint": base.fingerprint}
    (folder / LORA_REFERENCE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_index(folder: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """The class of the pipeline in a folder, and library and class of each part that it is loaded with.

    Raises UserError, naming the file, for what is no index of a pipeline that we know.
    """
    file = folder / INDEX
    index = read_json(file)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise UserError(f"{file} names a {kind or 'pipeline of no _class_name'}; accepted: {', '.join(PIPELINES)}")
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


def _open(folder: Path) -> ModelFolder:
    if (folder / LORA_REFERENCE).exists():
        return _open_lora(folder)
    if (folder / INDEX).exists():
        return _open_pipeline(folder)
    config = read_json(folder / CLASS_CONFIG) if (folder / CLASS_CONFIG).exists() else {}
    if config.get("kind") == CLASS_KIND:
        return _open_class_conditional(folder, config)
    raise UserError(
        f"{folder} is not a model folder: no {INDEX} in it (a diffusers pipeline is expected), "
        f"nor a {LORA_REFERENCE} (a LoRA folder), nor a {CLASS_CONFIG} of kind {CLASS_KIND} (of `ortho train-gan`)"
    )


def _open_pipeline(folder: Path) -> ModelFolder:
    kind, parts = read_index(folder)
    found: dict[str, Mapping[str, object]] = {INDEX: {"_class_name": kind, **parts}}
    files: list[Path] = []
    for name, (library, _) in parts.items():
        place = folder / name
        if not place.is_dir():
            raise UserError(f"{folder / INDEX} names a {name}, and there is no folder {place}: {AGAIN}")
        if name.startswith("tokenizer"):
            for file in tokenizer_files(place):
                if file.suffix == ".json":
                    found[f"{name}/{file.name}"] = read_json(file)
                else:
                    files.append(check_file(file))
        elif name == "scheduler":
            found[SCHEDULER] = read_json(folder / SCHEDULER)
        else:
            found[f"{name}/config.json"] = read_json(place / "config.json")
            files += weights_of(place, library)
    if (folder / RECIPE).exists() and (recipe := read_json(folder / RECIPE)):
        found[RECIPE] = recipe
    _, H, W = shape = _latent_shape(found["unet/config.json"], folder / "unet" / "config.json")
    factor = _pixels_per_latent(found["vae/config.json"], folder / "vae" / "config.json")
    timestep = _timestep(found.get(RECIPE, {}), folder / RECIPE)
    return ModelFolder(
        path=folder,
        kind=kind,
        latent_shape=shape,
        target_shape=shape,
        image_size=(H * factor, W * factor),
        recipe=OneStepRecipe(parts["scheduler"][1], found[SCHEDULER], timestep),
        class_config=None,
        configurations={name: json_hash(content) for name, content in found.items()},
        files=tuple(str(file.relative_to(folder)) for file in files),
    )


def _latent_shape(config: Mapping[str, object], file: Path) -> tuple[int, int, int]:
    C: Any = config.get("in_channels")
    size: Any = config.get("sample_size")
    H, W = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not all(type(n) is int and n > 0 for n in (C, H, W)):
        raise UserError(
            f"{file} does not state the latent's shape: in_channels {C!r}, sample_size {size!r}; accepted: channels, and one "
            "side or [height, width]"
        )
    return C, H, W


def _pixels_per_latent(config: Mapping[str, object], file: Path) -> int:
    """Along one side: each block of the autoencoder but one halves the image."""
    blocks = config.get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise UserError(
            f"{file} does not state the autoencoder's blocks: block_out_channels {blocks!r}; accepted: a list"
        )
    return int(2 ** (len(blocks) - 1))


def _timestep(recipe: Mapping[str, object], file: Path) -> int | None:
    if unknown := sorted(recipe.keys() - {"timestep"}):
        raise UserError(f"{file} has unknown entries {unknown}; accepted: timestep")
    timestep = recipe.get("timestep")
    if timestep is not None and (type(timestep) is not int or timestep < 0):
        raise UserError(f"{file}: timestep is {timestep!r}; accepted: a whole number, 0 or above")
    return timestep


def _open_class_conditional(folder: Path, content: Mapping[str, object]) -> ModelFolder:
    config = ClassConfig.parse(content, folder / CLASS_CONFIG)
    return ModelFolder(
        path=folder,
        kind=CLASS_KIND,
        latent_shape=config.noise_shape,
        target_shape=config.image_shape,
        image_size=config.image_shape[1:],
        recipe=None,
        class_config=config,
        configurations={CLASS_CONFIG: json_hash(config.model_dump(mode="json"))},
        files=(check_file(folder / CLASS_WEIGHTS).name,),
    )


def _open_lora(folder: Path) -> ModelFolder:
    file = folder / LORA_REFERENCE
    content, accepted = read_json(file), ("base_model", "base_fingerprint")
    if set(content) != set(accepted):
        raise UserError(f"{file} holds {sorted(content)}; accepted: an object of {' and '.join(accepted)}")
    if not all(isinstance(value, str) and value for value in content.values()):
        raise UserError(f"{file}: base_model and base_fingerprint must be non-empty strings, found {content}")
    if (folder / INDEX).exists():
        raise UserError(f"{folder} holds both {INDEX} and {LORA_REFERENCE}; a model folder has one of them")
    if not (folder / LORA_WEIGHTS).is_file():
        raise UserError(f"{folder} is not a LoRA folder: {LORA_REFERENCE} without {LORA_WEIGHTS}")
    place = Path(content["base_model"])
    if not place.is_absolute():
        raise UserError(f"{file}: base_model is {place}; an absolute path is accepted")
    if not place.is_dir():
        raise UserError(f"{file}: the base model {place} does not exist; write where it is now as base_model there")
    if (place / LORA_REFERENCE).exists():
        raise UserError(
            f"{file}: the base model {place} is itself a LoRA folder; accepted: a diffusers pipeline's folder"
        )
    try:
        base = ModelFolder.open(place)
    except UserError as error:
        raise UserError(f"{file}: base_model: {error}") from error
    if base.kind == CLASS_KIND:
        raise UserError(
            f"{file}: the base model {place} is class-conditional, which has no adapters; accepted: a diffusers pipeline's"
        )
    return base.with_adapter(folder, content["base_fingerprint"])


def _over(hashes: Mapping[str, str], digest: Any) -> str:
    """The digest of names and hashes after what it was given already."""
    for name, value in sorted(hashes.items()):
        digest.update(f"{name}\0{value}\0".encode())
    return str(digest.hexdigest())
