"""Open and describe model folders without loading weights.

A model folder is a diffusers pipeline, a class-conditional generator (`config.json` and its weights), or a *LoRA folder*: an
adapter's weights and a `lora.json` that names its base, the pipeline that the adapter belongs to. A single-file checkpoint can be
given instead of its pipeline's folder.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.framing.image_size import text_of
from ortho_core.generators.checkpoint_file import SUFFIX, CheckpointFile
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.fingerprints import digest_over, fingerprint_over, numbered
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.lora_files import LORA_WEIGHTS, LoraFile
from ortho_core.generators.lora_reference import LORA_REFERENCE, read_lora_reference
from ortho_core.generators.part_files import check_file, json_hash, preferred, read_json
from ortho_core.generators.pipeline_files import FLOAT32, INDEX, SCHEDULER, PipelineFiles
from ortho_core.generators.pipelines.adapter import PipelineAdapter
from ortho_core.generators.pipelines.kinds import ADAPTERS
from ortho_core.generators.recipe import OneStepRecipe
from ortho_core.storage.hashes import content_hash

#: The files of a class-conditional generator, and the value of `kind` in the first.
CLASS_CONFIG, CLASS_WEIGHTS, CLASS_KIND = "config.json", "network.safetensors", "class-conditional"


@dataclass(frozen=True)
class ModelFolder:
    """The description of a model folder, read once; a job opens it and passes it to its workers.

    The path is absolute: workers on other nodes expect the folder at the same path.
    """

    path: Path
    #: The pipeline class (for a LoRA folder its base's), or `class-conditional`.
    kind: str
    #: (C, H, W) of the noise map.
    latent_shape: tuple[int, int, int]
    #: (c, h, w) of the network's output; for a pipeline equal to `latent_shape`.
    target_shape: tuple[int, int, int]
    #: (Y, X) in pixels.
    image_size: tuple[int, int]
    #: Pixels of which the sides of images of other sizes must be multiples; 0: there are no other sizes.
    size_multiple: int
    #: The settings of a pipeline's step; None for a class-conditional generator.
    recipe: OneStepRecipe | None
    #: The configuration of a class-conditional generator; None for a pipeline.
    class_config: ClassConfig | None
    #: SHA-256 of each configuration's content, by its name in the folder.
    configurations: Mapping[str, str]
    #: Names of the other files that identify the model: for each part's weights those of the first variant that exists.
    files: tuple[str, ...]
    #: For a pipeline: library and class of each part, and the folder of its configurations: the model folder itself, or another
    #: one for a single-file checkpoint.
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    configs: Path | None = None
    #: Names of the files of each part's weights by variant, of which one is loaded; empty for a checkpoint.
    weights: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    #: Whether the model is a single-file checkpoint; if its configurations are built in, the name of the model they come from.
    checkpoint: bool = False
    built_in: str = ""
    #: For a LoRA folder: the model that its adapter belongs to, and that model's fingerprint as `lora.json` records it.
    lora_base: "ModelFolder | None" = None
    recorded_fingerprint: str | None = None
    #: LoRAs that are added to the weights (`--lora`).
    loras: tuple[LoraFile, ...] = ()
    #: The image size that the configurations state, if `at` has changed it.
    own_size: tuple[int, int] | None = None
    #: SHA-256 of the folder's files by name, from the first time each was hashed. Workers get them: files loaded later are
    #: compared with them.
    seen: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def open(folder: str | Path) -> "ModelFolder":
        """Read and check a folder's configurations. Raises UserError, naming the file and the remedy, for any fault.

        It does not check that a LoRA folder's base is the recorded one; `fingerprint` does.
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
        """The LoRA folder whose adapter was trained on this model. `recorded_fingerprint` defaults to this model's."""
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
        """The model with these LoRAs added to its weights. Raises UserError, in one line, for a file that is not a LoRA."""
        if added and self.kind == CLASS_KIND:
            raise UserError(f"--lora: {self.path} is class-conditional, which has no adapters")
        files = [LoraFile.open(each) for each in added]
        # Sorted, because sums are rounded: the result must not depend on the order of the option.
        return replace(self, loras=tuple(sorted(files, key=lambda file: file.fingerprint)))

    def at(self, size: tuple[int, int] | None) -> "ModelFolder":
        """The model with images of another size (Y, X) in pixels; None: this model. Weights and fingerprint are the same.

        Raises UserError if the autoencoder does not divide the size, or if the model has one size only.
        """
        if size is None or size == self.image_size:
            return self
        own, shown = self.own_size or self.image_size, f"--size {text_of(size)}: "
        if self.kind == CLASS_KIND:
            raise UserError(f"{shown}{self.path} is class-conditional and makes only {text_of(own)}; leave --size out")
        C, H, _ = self.latent_shape
        factor, needed = self.image_size[0] // H, self.size_multiple
        if any(side % needed for side in size):
            tokens = "" if needed == factor else f" times the network's {needed // factor}"
            raise UserError(f"{shown}both sides must be multiples of {needed}, the autoencoder's factor{tokens}")
        shape, other = (C, size[0] // factor, size[1] // factor), None if size == own else own
        return replace(self, latent_shape=shape, target_shape=shape, image_size=size, own_size=other)

    @property
    def place(self) -> Path:
        """The folder that contains `files`."""
        return self.path.parent if self.checkpoint else self.path

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the parts that have weights."""
        return tuple(name for name in self.parts if not name.startswith(("scheduler", "tokenizer")))

    @property
    def all_files(self) -> list[str]:
        """Names of all files that may be loaded: those of every variant."""
        variants = [names for part in self.weights.values() for files in part.values() for names in files]
        return list(dict.fromkeys([*self.files, *variants]))

    def files_used(self, dtype: str) -> str:
        """A line that tells which variants are loaded for `dtype` (also `auto`); empty if there is no choice."""
        base = self.base
        if base.built_in:
            return (
                f"model {base.path}: configuration and scheduler of {base.built_in}, {base.image_size[1]} px (to use others, put "
                f"a diffusers folder at {base.path.with_suffix('')})"
            )
        if all(set(variants) == {""} for variants in base.weights.values()):
            return ""
        if dtype != "auto":
            return f"model {base.path}: {self._taken(dtype)} (--dtype {dtype})"
        gpu, cpu = self._taken(self.adapter.half), self._taken("float32")
        which = gpu if gpu == cpu else f"on a GPU {gpu}, on a CPU {cpu}"
        return f"model {base.path}: {which} (--dtype auto)"

    def _taken(self, dtype: str) -> str:
        """The variants that are loaded, with the parts of each, as text."""
        taken: dict[str, list[str]] = {}
        for part in self.weights:
            taken.setdefault(self.variant_of(part, dtype) or "full", []).append(part)
        return "; ".join(f"{variant} files of {', '.join(parts)}" for variant, parts in taken.items())

    @property
    def exact(self) -> tuple[str, ...]:
        """The parts that are loaded in float32, whatever the precision of the others.

        With a LoRA for text encoders, these are loaded in float32 too, and rounded after the LoRA was added: they are small.
        """
        on_text = any(lora.on_text for lora in self.loras)
        texts = [name for name in self.networks if name != self.adapter.network] if on_text else []
        return tuple(dict.fromkeys([*FLOAT32, *texts]))

    def variant_of(self, part: str, dtype: str) -> str:
        """The variant of weights that a part is loaded from, if the model computes in `dtype`."""
        return preferred(self.weights[part], "float32" if part in self.exact else dtype)

    @property
    def base(self) -> "ModelFolder":
        """The model that an adapter is added to; for a folder that is not a LoRA folder, itself."""
        return self if self.lora_base is None else self.lora_base

    @property
    def adapter(self) -> PipelineAdapter:
        """What its kind of pipeline is; class-conditional models have none."""
        return ADAPTERS[self.kind]

    @property
    def network_config(self) -> dict[str, Any]:
        """The configuration of a pipeline's network. Raises UserError if it cannot be read."""
        return read_json((self.base.configs or self.base.path) / self.adapter.network / "config.json")

    @property
    def half(self) -> str | None:
        """The half precision that the network was made for, that of `--dtype auto` on a GPU; None: float32 only."""
        return None if self.kind == CLASS_KIND else self.adapter.half

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, which are the prompts of a class-conditional generator; empty for a pipeline."""
        return () if self.class_config is None else self.class_config.classes

    @property
    def noise_scale(self) -> float:
        """s of x_T = s·ε, the start of the model's scheduler. Raises UserError if the scheduler does not define it."""
        if self.recipe is None:
            raise UserError(
                f"{self.path} has no scheduler that defines the scale of the noise; give it with --noise-scale"
            )
        try:
            return self.recipe.noise_scale()
        except UserError as error:
            raise UserError(f"{self.base.path / SCHEDULER} {error}") from error

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file that is loaded, by its name in the folder; for JSON that of the content, not of its layout.

        Raises UserError for a file that cannot be read.
        """
        return {**self.configurations, **self.hashes_of(self.files)}

    def hashes_of(self, names: Sequence[str]) -> dict[str, str]:
        """SHA-256 of files of the folder by name, from when they were first `seen`. Raises UserError for an unreadable file."""
        for name in names:
            if name not in self.seen:
                try:
                    self.seen[name] = content_hash(self.place / name)
                except OSError as error:
                    raise UserError(f"{self.place / name} cannot be read: {error.strerror}") from error
        return {name: self.seen[name] for name in names}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over the names and contents of the files that are loaded. It does not depend on the folder's
        path or on other files in it. For a LoRA folder: over the adapter's weights and the fingerprint of its base. With
        `--lora`: also over the added LoRAs.

        All variants of the weights are one model: the hash uses the first in the order of VARIANTS, whichever is loaded.

        Raises UserError if the base has another fingerprint than `lora.json` records.
        """
        if self.lora_base is not None:
            current, recorded = self.lora_base.fingerprint, self.recorded_fingerprint
            if current != recorded:
                raise UserError(
                    f"{self.path / LORA_REFERENCE}: the base model {self.lora_base.path} has fingerprint {current}, but the "
                    f"LoRA was trained on {recorded}; set base_model to the folder of that model"
                )
        plain = fingerprint_over(self.hashes, None if self.lora_base is None else self.recorded_fingerprint)
        return (
            plain if not self.loras else fingerprint_over({"": plain}, added=[lora.fingerprint for lora in self.loras])
        )

    @property
    def text_fingerprint(self) -> str:
        """SHA-256 over the files that determine prompt embeddings: models with equal values have equal embeddings."""
        # The parts of a checkpoint are in one file.
        own = self.base.files if self.base.checkpoint else ()
        decisive = (INDEX, CLASS_CONFIG, "text_encoder", "tokenizer", *own)
        hashes = {name: value for name, value in self.base.hashes.items() if name.startswith(decisive)}
        if self.kind != CLASS_KIND and (settings := self.adapter.prompt_settings(self.network_config)):
            hashes["settings"] = settings
        on_text = any(lora.on_text for lora in self.loras)
        return digest_over(
            hashes | (numbered(lora.fingerprint for lora in self.loras) if on_text else {}), hashlib.sha256()
        )

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bytes, about the disk space of a copy of the model."""
        return sum((self.place / name).stat().st_size for name in self.files)


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
            f"{folder} is not a model folder: it has no {INDEX} and no {LORA_REFERENCE}; to use one of its files ({some}), give "
            "a checkpoint's path to --model, or a LoRA's path to --lora"
        )
    raise UserError(
        f"{folder} is not a model folder: no {INDEX} in it (a diffusers pipeline), no {LORA_REFERENCE} (a LoRA folder), "
        f"no {CLASS_CONFIG} of kind {CLASS_KIND} (from `ortho train-gan`)"
    )


def _open_pipeline(folder: Path) -> ModelFolder:
    pipeline = PipelineFiles.read(folder)
    weights = {
        part: {variant: tuple(str(file.relative_to(folder)) for file in files) for variant, files in variants.items()}
        for part, variants in pipeline.weights.items()
    }
    vocabularies = [str(file.relative_to(folder)) for file in pipeline.vocabularies]
    canonical = [name for variants in weights.values() for name in next(iter(variants.values()))]
    return replace(_described(folder, pipeline), files=(*vocabularies, *canonical), weights=weights)


def _open_checkpoint(file: Path) -> ModelFolder:
    checkpoint = CheckpointFile.read(file)
    model = _described(file, checkpoint.configs)
    folder = checkpoint.configs.folder
    vocabularies = {str(each.relative_to(folder)): content_hash(each) for each in checkpoint.configs.vocabularies}
    return replace(
        model,
        configurations={**model.configurations, **vocabularies},
        files=(file.name,),
        checkpoint=True,
        built_in=checkpoint.family.like if checkpoint.family is not None else "",
    )


def _described(path: Path, pipeline: PipelineFiles) -> ModelFolder:
    return ModelFolder(
        path=path,
        kind=pipeline.kind,
        latent_shape=pipeline.latent_shape,
        target_shape=pipeline.latent_shape,
        image_size=pipeline.image_size,
        size_multiple=pipeline.size_multiple,
        recipe=pipeline.recipe,
        class_config=None,
        configurations=pipeline.configurations,
        files=(),
        parts=pipeline.parts,
        configs=pipeline.folder,
    )


def _open_class_conditional(folder: Path, content: Mapping[str, object]) -> ModelFolder:
    config = ClassConfig.parse(content, folder / CLASS_CONFIG)
    return ModelFolder(
        path=folder,
        kind=CLASS_KIND,
        latent_shape=config.noise_shape,
        target_shape=config.image_shape,
        image_size=config.image_shape[1:],
        size_multiple=0,
        recipe=None,
        class_config=config,
        configurations={CLASS_CONFIG: json_hash(config.model_dump(mode="json"))},
        files=(check_file(folder / CLASS_WEIGHTS).name,),
    )


def _open_lora(folder: Path) -> ModelFolder:
    file = folder / LORA_REFERENCE
    place, fingerprint = read_lora_reference(file)
    if (folder / INDEX).exists():
        raise UserError(f"{folder} contains both {INDEX} and {LORA_REFERENCE}; a model folder has only one of them")
    if not (folder / LORA_WEIGHTS).is_file():
        raise UserError(f"{folder} is not a LoRA folder: {LORA_REFERENCE} without {LORA_WEIGHTS}")
    if not place.exists():
        raise UserError(
            f"{file}: the base model {place} does not exist; set base_model in this file to its present folder"
        )
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
    return base.with_adapter(folder, fingerprint)


def check_quantize(folder: ModelFolder, quantize: str, group: str = "") -> None:
    """Raises UserError if `quantize` is requested for a class-conditional model, whose weights are not packed."""
    if folder.kind == CLASS_KIND and quantize != "none":
        raise UserError(f"--{group}quantize: {folder.path} is class-conditional and too small for it; leave it out")
