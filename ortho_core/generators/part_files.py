"""The files that the parts of a diffusers pipeline are loaded from, found and checked without loading any.

They are those that diffusers and transformers load for full precision safetensors: other variants, formats and notes beside
them are none of the model.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ortho_core.errors import UserError

#: What a file begins with that git left in place of a large one.
POINTER = b"version https://git-lfs.github.com/spec/"
#: Bytes that a pointer is shorter than.
SHORT = 1024
#: Names of a part's weights, without the ending, by the library that loads it.
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
#: A tokenizer is loaded from the first of these that is whole, with the settings that are there.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: Entries of configurations that say what wrote them and where from; nothing is computed with them.
NOTES = frozenset(
    {
        *("_diffusers_version", "transformers_version", "_name_or_path", "name_or_path"),
        *("special_tokens_map_file", "tokenizer_file", "is_local", "local_files_only"),
    }
)

AGAIN = "fetch the model folder again"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, naming the file and the remedy, for whatever else is there."""
    content = _bytes_of(file)
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}): {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}; correct it, or {AGAIN}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds {json.dumps(value)[:60]}; accepted: a JSON object")
    return value


def _bytes_of(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {AGAIN}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    _check_content(file, content)
    return content


def check_file(file: Path) -> Path:
    """The file, which is not read. Raises UserError, with the remedy, if it is missing, empty or git-lfs's pointer."""
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
        raise UserError(
            f"{file} is the pointer that git-lfs puts in a file's place: run `git lfs pull` in its repository"
        )
    if not content.strip():
        raise UserError(f"{file} is empty: {AGAIN}")


def weights_of(folder: Path, library: str) -> list[Path]:
    """The safetensors of a part: one file, or the shards that an index names. Raises UserError for what is missing."""
    single = folder / f"{STEMS[library]}.safetensors"
    index = folder / f"{STEMS[library]}.safetensors.index.json"
    # Where both are there, each library has its own preference.
    for file in (index, single) if library == "diffusers" else (single, index):
        if file.is_file():
            return [check_file(single)] if file == single else [check_file(shard) for shard in _shards(index)]
    kinds = {".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx", ".h5"}
    other = sorted(file.name for file in folder.iterdir() if file.suffix in kinds)
    there = f"; {', '.join(other)} in its place is another variant or format, and not loaded" if other else ""
    raise UserError(f"{single} is missing{there}: fetch the full precision safetensors of this part")


def check_safetensors(files: Iterable[Path]) -> None:
    """Raises UserError, with the remedy, for the first file that is cut short or holds something else; reads the heads alone."""
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is broken ({str(error).splitlines()[0]}): {AGAIN}") from error


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(n, str) and Path(n).name == n for n in names.values())
    ):
        raise UserError(f"{index} has no weight_map of file names: {AGAIN}")
    return [index.parent / name for name in sorted(set(names.values()))]


def tokenizer_files(folder: Path) -> list[Path]:
    """What a tokenizer is loaded from. Raises UserError if it has no vocabulary."""
    for names in VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in (*names, *TOKENIZER_SETTINGS) if (folder / name).is_file()]
    raise UserError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt: {AGAIN}")


def json_hash(content: Mapping[str, object]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys, its layout and its NOTES."""
    decisive = {key: value for key, value in content.items() if key not in NOTES}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
