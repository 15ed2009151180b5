"""Find and check the files of a diffusers pipeline's parts, without loading them.

They are safetensors under the names that diffusers and transformers load. The weights of a part may exist in several *variants*,
the same numbers in another precision: `model.safetensors`, `model.fp16.safetensors`. Other variants (`non_ema`), formats and
notes beside them do not count as part of the model.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ortho_core.errors import UserError
from ortho_core.text.parsing import NotParsedError, json_object, regular_bytes

#: The first bytes of a git-lfs pointer, the small file that git leaves in place of a large one.
POINTER = b"version https://git-lfs.github.com/spec/"
#: A pointer is shorter than this many bytes.
SHORT = 1024
#: Names of a part's weights, without the ending, by the library that loads it.
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
#: Variants of weights as named in file names, "" for the plain one. The first that exists identifies the model.
VARIANTS = ("", "fp32", "fp16", "bf16")
#: Order of preference among the variants, by the dtype that a part computes in.
PREFERRED = {
    "float32": ("fp32", "", "fp16", "bf16"),
    "float16": ("fp16", "", "fp32", "bf16"),
    "bfloat16": ("bf16", "fp16", "", "fp32"),
}
#: A tokenizer is loaded from the first of these sets that is complete, and from those settings files that exist.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: Entries of configurations about the program that wrote them and its paths. They have no effect on results.
NOTES = frozenset(
    {
        *("_diffusers_version", "transformers_version", "_name_or_path", "name_or_path"),
        *("special_tokens_map_file", "tokenizer_file", "is_local", "local_files_only"),
    }
)

AGAIN = "fetch the model folder again"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, naming the file and the remedy, if it is missing or contains anything else."""
    content = _bytes_of(file)
    try:
        return json_object(content, str(file))
    except NotParsedError as error:
        raise UserError(f"{error}; correct it, or {AGAIN}") from error


def _bytes_of(file: Path) -> bytes:
    try:
        content = regular_bytes(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {AGAIN}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    _check_content(file, content)
    return content


def check_file(file: Path) -> Path:
    """Return the file; a large one is not read. Raises UserError, with the remedy, if it is missing, empty or a pointer."""
    try:
        if os.stat(file).st_size < SHORT:
            _bytes_of(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {AGAIN}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return file


def _check_content(file: Path, content: bytes) -> None:
    if content.startswith(POINTER):
        raise UserError(f"{file} is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository")
    if not content.strip():
        raise UserError(f"{file} is empty: {AGAIN}")


def weights_of(folder: Path, library: str) -> dict[str, tuple[Path, ...]]:
    """The safetensors of a part, by variant in the order of VARIANTS: one file each, or the shards that an index names.

    A variant that is a git-lfs pointer, or whose shards are all missing, counts as absent if another variant exists: clones and
    downloads often contain only one. Raises UserError if no variant is complete.
    """
    absent: list[UserError] = []
    variants: dict[str, tuple[Path, ...]] = {}
    for variant in VARIANTS:
        try:
            if files := _variant_of(folder, library, variant):
                variants[variant] = files
        except _AbsentError as error:
            absent.append(error)
    if variants:
        return variants
    if absent:
        raise absent[0]
    kinds = {".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx", ".h5"}
    other = sorted(file.name for file in folder.iterdir() if file.suffix in kinds)
    unused = f"; the folder has {', '.join(other)}, a variant or format that is not loaded" if other else ""
    raise UserError(
        f"{folder / STEMS[library]}.safetensors is missing{unused}: fetch the safetensors of this part, in full precision or the "
        "fp16 variant"
    )


class _AbsentError(UserError):
    """A variant without any weights: only an index or pointers of it exist."""


def _variant_of(folder: Path, library: str, variant: str) -> tuple[Path, ...]:
    ending = f".{variant}" if variant else ""
    single = folder / f"{STEMS[library]}{ending}.safetensors"
    index = folder / f"{STEMS[library]}.safetensors.index{ending}.json"
    # If both exist, diffusers prefers the index, transformers the single file.
    for file in (index, single) if library == "diffusers" else (single, index):
        if not file.is_file():
            continue
        files = _shards(index) if file == index else (single,)
        missing = [each for each in files if not each.is_file() or is_pointer(each)]
        if len(missing) < len(files):
            return tuple(check_file(each) for each in files)
        try:
            check_file(missing[0])
        except UserError as error:
            raise _AbsentError(str(error)) from error
    return ()


def is_pointer(file: Path) -> bool:
    """Whether a file is a git-lfs pointer."""
    with open(file, "rb") as stream:
        return stream.read(len(POINTER)) == POINTER


def preferred(variants: Iterable[str], dtype: str) -> str:
    """The variant, among those that exist, that a part is loaded from in `dtype`."""
    return next(variant for variant in PREFERRED[dtype] if variant in set(variants))


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, by name; only its header is read.

    Raises UserError, with the remedy, if the file is truncated or not safetensors.
    """
    check_file(file)
    try:
        with safe_open(file, "np") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is broken ({str(error).splitlines()[0]}): {AGAIN}") from error


def check_safetensors(files: Iterable[Path]) -> None:
    """Raises UserError, with the remedy, for the first file that is missing, truncated or not safetensors; reads only headers."""
    for file in files:
        check_file(file)
        try:
            with safe_open(file, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is broken ({str(error).splitlines()[0]}): {AGAIN}") from error


def _shards(index: Path) -> tuple[Path, ...]:
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(n, str) and Path(n).name == n for n in names.values())
    ):
        raise UserError(f"{index} has no weight_map of file names: {AGAIN}")
    return tuple(index.parent / name for name in sorted(set(names.values())))


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that a tokenizer is loaded from. Raises UserError if it has no vocabulary."""
    for names in VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in (*names, *TOKENIZER_SETTINGS) if (folder / name).is_file()]
    raise UserError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt: {AGAIN}")


def json_hash(content: Mapping[str, object]) -> str:
    """SHA-256 of a configuration, independent of key order, layout and the entries in NOTES."""
    decisive = {key: value for key, value in content.items() if key not in NOTES}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
