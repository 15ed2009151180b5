"""Model folders, checked and described without loading any weights.

A model folder is a diffusers pipeline, a class-conditional generator (`config.json` and its weights), or a *LoRA folder*: an
adapter's weights and a `lora.json` that names the pipeline folder, the base, which the adapter belongs to.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortho_core.errors import UserError

if TYPE_CHECKING:
    from ortho_core.generators.class_config import ClassConfig


#: The diffusers pipeline classes that are one-step generators to us.
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")

#: The file that makes a folder a class-conditional generator's, and the `kind` that it states.
CLASS_CONFIG, CLASS_KIND = "config.json", "class-conditional"

#: The two files of a LoRA folder: which base it belongs to, and the weights, named as diffusers looks for them.
LORA_REFERENCE = "lora.json"

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class LoraReference:
    """What `lora.json` says: the absolute path of the base model's folder, and its fingerprint when the LoRA was made."""

    base_model: Path
    base_fingerprint: str

    def write(self, folder: Path) -> None:
        content = {"base_model": str(self.base_model), "base_fingerprint": self.base_fingerprint}
        (folder / LORA_REFERENCE).write_text(json.dumps(content, indent=1) + "\n")

    @staticmethod
    def read(folder: str | Path) -> "LoraReference | None":
        """None for a folder that is no LoRA folder. Raises UserError, naming the file, for a `lora.json` that is broken."""
        file = Path(folder) / LORA_REFERENCE
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"{file} is not JSON: {error}") from error
        accepted = ("base_model", "base_fingerprint")
        if not isinstance(content, dict) or set(content) != set(accepted):
            found = sorted(content) if isinstance(content, dict) else content
            raise UserError(f"{file} holds {found}; accepted: an object of {' and '.join(accepted)}")
        if not all(isinstance(value, str) and value for value in content.values()):
            raise UserError(f"{file}: base_model and base_fingerprint must be non-empty strings, found {content}")
        base = Path(content["base_model"])
        if not base.is_absolute():
            raise UserError(f"{file}: base_model is {base}; an absolute path is accepted")
        if not base.is_dir():
            raise UserError(f"{file}: the base model {base} does not exist; write where it is now as base_model there")
        return LoraReference(base, content["base_fingerprint"])


def base_folder_of(folder: str | Path) -> Path:
    """The base of a LoRA folder; any other folder is its own. Raises UserError for a `lora.json` that is broken."""
    reference = LoraReference.read(folder)
    return Path(folder) if reference is None else reference.base_model


def check_model_folder(folder: str | Path) -> str:
    """The pipeline class that `folder`, or its base, names, or `class-conditional`. Raises UserError, naming the file, if it is
    none that we know.

    Cheap: of a LoRA folder's base it is not checked that it is the one recorded, which `model_fingerprint` does.
    """
    folder = Path(folder)
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist (give a local folder, e.g. models/tiny-turbo)")
    reference = LoraReference.read(folder)
    if reference is not None:
        return _check_lora_folder(folder, reference.base_model)
    if not index.is_file():
        if is_class_conditional(folder):
            return CLASS_KIND
        raise UserError(
            f"{folder} is not a model folder: no model_index.json in it (a diffusers pipeline is expected), "
            f"nor a {LORA_REFERENCE} (a LoRA folder), nor a {CLASS_CONFIG} of kind {CLASS_KIND} (of `ortho train-gan`)"
        )
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not a diffusers model index: {error!r}") from error
    if name not in PIPELINES:
        raise UserError(f"{index} names a {name}; accepted: {', '.join(PIPELINES)}")
    return str(name)


def is_class_conditional(folder: str | Path) -> bool:
    """Is it the folder of a class-conditional generator? Cheap; that the rest of it is sound is not checked."""
    try:
        content = json.loads((Path(folder) / CLASS_CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == CLASS_KIND


def _check_lora_folder(folder: Path, base: Path) -> str:
    file = folder / LORA_REFERENCE
    if (folder / "model_index.json").exists():
        raise UserError(f"{folder} holds both model_index.json and {LORA_REFERENCE}; a model folder has one of them")
    if not (folder / LORA_WEIGHTS).is_file():
        raise UserError(f"{folder} is not a LoRA folder: {LORA_REFERENCE} without {LORA_WEIGHTS}")
    if (base / LORA_REFERENCE).exists():
        raise UserError(
            f"{file}: the base model {base} is itself a LoRA folder; accepted: a diffusers pipeline's folder"
        )
    if is_class_conditional(base):
        raise UserError(
            f"{file}: the base model {base} is class-conditional, which has no adapters; accepted: a diffusers pipeline's"
        )
    try:
        return check_model_folder(base)
    except UserError as error:
        raise UserError(f"{file}: base_model: {error}") from error


def model_fingerprint(folder: str | Path) -> str:
    """SHA-256 (16 hex digits) over the names and contents of the files that make the model what it is.

    Of a LoRA folder: over the adapter's weights and the fingerprint of its base, wherever that lies. Raises UserError if
    the base has another fingerprint than `lora.json` records.
    """
    folder = Path(folder)
    reference = LoraReference.read(folder)
    digest = hashlib.sha256()
    if reference is None:
        files = [f for f in sorted(folder.rglob("*")) if f.suffix in {".json", ".safetensors", ".txt"} and f.is_file()]
        if not files:
            raise UserError(f"{folder} holds no model files (.json, .safetensors)")
    else:
        _check_lora_folder(folder, reference.base_model)
        found, recorded = model_fingerprint(reference.base_model), reference.base_fingerprint
        if found != recorded:
            raise UserError(
                f"{folder / LORA_REFERENCE}: the base model {reference.base_model} has fingerprint {found}, and the LoRA was "
                f"trained on {recorded}; give base_model the folder of that model"
            )
        files = [folder / LORA_WEIGHTS]
        digest.update(f"base_fingerprint\0{recorded}\0".encode())
    for file in files:
        digest.update(f"{file.relative_to(folder)}\0{content_hash(file)}\0".encode())
    return digest.hexdigest()[:16]


def content_hash(file: Path) -> str:
    """SHA-256 of a file, which is not read again while it has not changed."""
    status = file.stat()
    return _hash_once(str(file.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=1024)
def _hash_once(file: str, *status: int) -> str:
    # Gigabytes of base model, which planning a job, loading a LoRA folder and each checkpoint of a LoRA would read again.
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def latent_shape_of(folder: str | Path) -> tuple[int, int, int]:
    """(C, H, W) read from the network's configuration alone, so that a job can be checked before anything is loaded."""
    if (own := _class_config_of(folder)) is not None:
        return own.noise_shape
    config, file = _config_of(folder, "unet")
    try:
        size = config["sample_size"]
        H, W = (size, size) if isinstance(size, int) else size
        return int(config["in_channels"]), int(H), int(W)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not state the latent's shape: {error!r}") from error


def image_size_of(folder: str | Path) -> tuple[int, int]:
    """(Y, X) in pixels, read from the configurations alone."""
    if (own := _class_config_of(folder)) is not None:
        return own.image_shape[1:]
    _, H, W = latent_shape_of(folder)
    config, file = _config_of(folder, "vae")
    try:
        factor = 2 ** (len(config["block_out_channels"]) - 1)
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} does not state the autoencoder's blocks: {error!r}") from error
    return H * factor, W * factor


def target_shape_of(folder: str | Path) -> tuple[int, int, int]:
    """(c, h, w) of what the network makes, read from its configuration alone; a pipeline's is that of the noise map."""
    own = _class_config_of(folder)
    return latent_shape_of(folder) if own is None else own.image_shape


def classes_of(folder: str | Path) -> tuple[str, ...]:
    """The classes that are the prompts of a class-conditional generator; of a pipeline none."""
    own = _class_config_of(folder)
    return () if own is None else own.classes


def _class_config_of(folder: str | Path) -> "ClassConfig | None":
    """Of a class-conditional generator. Raises UserError if it is broken."""
    if check_model_folder(folder) != CLASS_KIND:
        return None
    from ortho_core.generators.class_config import ClassConfig

    return ClassConfig.read(Path(folder) / CLASS_CONFIG)


def _config_of(folder: str | Path, part: str) -> tuple[Any, Path]:
    """The configuration of one part of the pipeline, and its file."""
    check_model_folder(folder)
    file = base_folder_of(folder) / part / "config.json"
    try:
        return json.loads(file.read_text()), file
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
