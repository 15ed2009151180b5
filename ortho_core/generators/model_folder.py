"""Model folders, opened and described without loading any weights.

A model folder is a diffusers pipeline, a class-conditional generator (`config.json` and its weights), or a *LoRA folder*: an
adapter's weights and a `lora.json` that names the pipeline, the base, which the adapter belongs to. A single-file checkpoint
stands for the folder of its pipeline.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.generators.checkpoint_file import SUFFIX, CheckpointFile
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.lora_files import LORA_WEIGHTS, LoraFile
from ortho_core.generators.part_files import check_file, json_hash, preferred, read_json
from ortho_core.generators.pipeline_files import FLOAT32, INDEX, SCHEDULER, PipelineFiles
from ortho_core.generators.recipe import OneStepRecipe
from ortho_core.storage.hashes import content_hash

#: The files of a class-conditional generator, and the `kind` that the first states.
CLASS_CONFIG, CLASS_WEIGHTS, CLASS_KIND = "config.json", "network.safetensors", "class-conditional"
#: The file that makes a folder a LoRA folder: which base its weights belong to.
LORA_REFERENCE = "lora.json"


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
    #: Names of the other files that identify the model: of each part's weights the first variant that is there.
    files: tuple[str, ...]
    #: Of a pipeline: library and class of each part, and where its configurations are: in the folder itself, or of a single-file
    #: checkpoint in another.
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    configs: Path | None = None
    #: Names of the files of each part's weights by variant, of which one is loaded; of a checkpoint there are none.
    weights: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    #: Whether the model is a single-file checkpoint; and if its configurations are built in, the model whose they are.
    checkpoint: bool = False
    built_in: str = ""
    #: Of a LoRA folder, the model that its adapter belongs to, and the fingerprint that `lora.json` records of it.
    lora_base: "ModelFolder | None" = None
    recorded_fingerprint: str | None = None
    #: What is added to the weights besides, with `--lora`.
    loras: tuple[LoraFile, ...] = ()
    #: SHA-256 of the folder's files by name, as they were when they were first hashed. They stay, and go to workers: what is
    #: loaded later is compared with them.
    seen: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def open(folder: str | Path) -> "ModelFolder":
        """Read and check a folder's configurations. Raises UserError, naming the file and the remedy, for what is wrong.

        Of a LoRA folder's base it is not checked that it is the one recorded, which `fingerprint` does.
        """
        folder = Path(folder)
        try:
            if folder.is_file():
                return _open_checkpoint(folder.absolute())
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
            checkpoint=False,
            lora_base=self,
            recorded_fingerprint=recorded_fingerprint or self.fingerprint,
            seen={},
        )

    def with_loras(self, added: Sequence[AddedLora]) -> "ModelFolder":
        """The model with these LoRAs added to its weights. Raises UserError, in one line, for files that are none."""
        if added and self.kind == CLASS_KIND:
            raise UserError(f"--lora: {self.path} is class-conditional, which has no adapters")
        files = [LoraFile.open(each) for each in added]
        # Sums are rounded: in one order, whichever they were given in.
        return replace(self, loras=tuple(sorted(files, key=lambda file: file.fingerprint)))

    @property
    def place(self) -> Path:
        """The folder that `files` are in."""
        return self.path.parent if self.checkpoint else self.path

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the parts that have weights."""
        return tuple(name for name in self.parts if not name.startswith(("scheduler", "tokenizer")))

    @property
    def all_files(self) -> list[str]:
        """Names of the files that may be loaded: those of every variant."""
        variants = [names for part in self.weights.values() for files in part.values() for names in files]
        return list(dict.fromkeys([*self.files, *variants]))

    def files_used(self, dtype: str) -> str:
        """Which of several files the parts are loaded from for `dtype`, also `auto`: one line, empty where there is no choice."""
        base = self.base
        if base.built_in:
            return (
                f"model {base.path}: configuration and scheduler of {base.built_in}, {base.image_size[1]} px (a diffusers folder "
                f"{base.path.with_suffix('')} would state others)"
            )
        if all(set(variants) == {""} for variants in base.weights.values()):
            return ""
        if dtype != "auto":
            return f"model {base.path}: {self._taken(dtype)} (--dtype {dtype})"
        gpu, cpu = self._taken("float16"), self._taken("float32")
        which = gpu if gpu == cpu else f"on a GPU {gpu}, on a CPU {cpu}"
        return f"model {base.path}: {which} (--dtype auto)"

    def _taken(self, dtype: str) -> str:
        """The variants that the parts are loaded from, with the parts of each."""
        taken: dict[str, list[str]] = {}
        for part in self.weights:
            taken.setdefault(self.variant_of(part, dtype) or "full", []).append(part)
        return "; ".join(f"{variant} files of {', '.join(parts)}" for variant, parts in taken.items())

    @property
    def exact(self) -> tuple[str, ...]:
        """The parts that are loaded in float32, whatever the precision of the others.

        A text encoder is small enough to be rounded after a LoRA was added to it.
        """
        texts = [name for name in self.networks if name != "unet"] if any(lora.on_text for lora in self.loras) else []
        return tuple(dict.fromkeys([*FLOAT32, *texts]))

    def variant_of(self, part: str, dtype: str) -> str:
        """The variant of its weights that a part is loaded from, of a model that computes in `dtype`."""
        return preferred(self.weights[part], "float32" if part in self.exact else dtype)

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

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file that is loaded, by its name in the folder; JSON's is of what it says, not how it is laid out.

        Raises UserError for a file that cannot be read.
        """
        return {**self.configurations, **self.hashes_of(self.files)}

    def hashes_of(self, names: Sequence[str]) -> dict[str, str]:
        """SHA-256 of files of the folder by name, as they were first `seen`. Raises UserError for one that cannot be read."""
        for name in names:
            if name not in self.seen:
                try:
                    self.seen[name] = content_hash(self.place / name)
                except OSError as error:
                    raise UserError(f"{self.place / name} cannot be read: {error.strerror}") from error
        return {name: self.seen[name] for name in names}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over the names and contents of what is loaded, wherever the folder lies and whatever else is
        in it. Of a LoRA folder: over the adapter's weights and the fingerprint of its base; with LoRAs added: over theirs too.

        Of weights in several variants it is over the first in the order of VARIANTS, whichever is loaded: they are one model.

        Raises UserError if a base has another fingerprint than `lora.json` records.
        """
        if self.lora_base is not None:
            found, recorded = self.lora_base.fingerprint, self.recorded_fingerprint
            if found != recorded:
                raise UserError(
                    f"{self.path / LORA_REFERENCE}: the base model {self.lora_base.path} has fingerprint {found}, and the "
                    f"LoRA was trained on {recorded}; give base_model the folder of that model"
                )
        own = fingerprint_over(self.hashes, None if self.lora_base is None else self.recorded_fingerprint)
        return own if not self.loras else fingerprint_over({"": own}, added=[lora.fingerprint for lora in self.loras])

    @property
    def text_fingerprint(self) -> str:
        """SHA-256 over what makes embeddings of prompts: models that share it have the same ones."""
        decisive = (INDEX, CLASS_CONFIG, "text_encoder", "tokenizer")
        hashes = {name: value for name, value in self.base.hashes.items() if name.startswith(decisive)}
        on_text = any(lora.on_text for lora in self.loras)
        return _over(hashes | (_numbered(lora.fingerprint for lora in self.loras) if on_text else {}), hashlib.sha256())

    @property
    def weight_bytes(self) -> int:
        """Size of the weights, about what a copy of the model takes on disk."""
        return sum((self.place / name).stat().st_size for name in self.files)


def write_lora_reference(folder: Path, base: ModelFolder) -> None:
    """Say in a LoRA folder which model its adapter belongs to."""
    content = {"base_model": str(base.path.resolve()), "base_fingerprint": base.fingerprint}
    (folder / LORA_REFERENCE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _open(folder: Path) -> ModelFolder:
    if (folder / LORA_REFERENCE).exists():
        return _open_lora(folder)
    if (folder / INDEX).exists():
        return _open_pipeline(folder)
    config = read_json(folder / CLASS_CONFIG) if (folder / CLASS_CONFIG).exists() else {}
    if config.get("kind") == CLASS_KIND:
        return _open_class_conditional(folder, config)
    checkpoints = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    if checkpoints and config.get("kind") is None:
        some = ", ".join(checkpoints[:4])
        raise UserError(
            f"{folder} is not a model folder: no {INDEX} in it, nor a {LORA_REFERENCE}; --model takes the file of a checkpoint "
            f"there, --lora that of a LoRA ({some})"
        )
    raise UserError(
        f"{folder} is not a model folder: no {INDEX} in it (a diffusers pipeline is expected), "
        f"nor a {LORA_REFERENCE} (a LoRA folder), nor a {CLASS_CONFIG} of kind {CLASS_KIND} (of `ortho train-gan`)"
    )


def _open_pipeline(folder: Path) -> ModelFolder:
    found = PipelineFiles.read(folder)
    weights = {
        part: {variant: tuple(str(file.relative_to(folder)) for file in files) for variant, files in variants.items()}
        for part, variants in found.weights.items()
    }
    vocabularies = [str(file.relative_to(folder)) for file in found.vocabularies]
    canonical = [name for variants in weights.values() for name in next(iter(variants.values()))]
    return replace(_described(folder, found), files=(*vocabularies, *canonical), weights=weights)


def _open_checkpoint(file: Path) -> ModelFolder:
    found = CheckpointFile.read(file)
    model = _described(file, found.configs)
    folder = found.configs.folder
    vocabularies = {str(each.relative_to(folder)): content_hash(each) for each in found.configs.vocabularies}
    return replace(
        model,
        configurations={**model.configurations, **vocabularies},
        files=(file.name,),
        checkpoint=True,
        built_in=found.family.like if found.family is not None else "",
    )


def _described(path: Path, found: PipelineFiles) -> ModelFolder:
    return ModelFolder(
        path=path,
        kind=found.kind,
        latent_shape=found.latent_shape,
        target_shape=found.latent_shape,
        image_size=found.image_size,
        recipe=found.recipe,
        class_config=None,
        configurations=found.configurations,
        files=(),
        parts=found.parts,
        configs=found.folder,
    )


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
    if not place.exists():
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


def fingerprint_over(hashes: dict[str, str], base: str | None = None, added: Iterable[str] = ()) -> str:
    """SHA-256 (16 hex digits) over names and hashes; of an adapter also over the fingerprint of its base, of a model with LoRAs
    over what they add.
    """
    digest = hashlib.sha256()
    if base is not None:
        digest.update(f"base_fingerprint\0{base}\0".encode())
    return _over(hashes | _numbered(added), digest)[:16]


def _numbered(added: Iterable[str]) -> dict[str, str]:
    return {f"lora {number}": fingerprint for number, fingerprint in enumerate(added)}


def _over(hashes: Mapping[str, str], digest: Any) -> str:
    """The digest of names and hashes after what it was given already."""
    for name, value in sorted(hashes.items()):
        digest.update(f"{name}\0{value}\0".encode())
    return str(digest.hexdigest())


def check_quantize(folder: ModelFolder, quantize: str, group: str = "") -> None:
    """Raises UserError for a model that is not packed."""
    if folder.kind == CLASS_KIND and quantize != "none":
        raise UserError(f"--{group}quantize: {folder.path} is class-conditional and too small for it; leave it out")
