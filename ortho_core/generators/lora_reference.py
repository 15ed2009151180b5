"""`lora.json`, the file that makes a folder a LoRA folder: the model that the adapter's weights belong to."""

import json
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.generators.part_files import read_json

LORA_REFERENCE = "lora.json"
REFERENCE = ("base_model", "base_fingerprint")


def write_lora_reference(folder: Path, base: Path, fingerprint: str) -> None:
    """Write `lora.json` in a LoRA folder: the base model's place and fingerprint."""
    content = dict(zip(REFERENCE, (str(base.resolve()), fingerprint), strict=True))
    (folder / LORA_REFERENCE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_lora_reference(file: Path) -> tuple[Path, str]:
    """The base model's absolute path and fingerprint. Raises UserError, naming the file and what is accepted."""
    content = read_json(file)
    if set(content) != set(REFERENCE):
        raise UserError(f"{file} has the entries {sorted(content)}; accepted: an object with {' and '.join(REFERENCE)}")
    if not all(isinstance(value, str) and value for value in content.values()):
        raise UserError(f"{file}: base_model and base_fingerprint must be non-empty strings, found {content}")
    place, fingerprint = Path(content["base_model"]), str(content["base_fingerprint"])
    if not place.is_absolute():
        raise UserError(f"{file}: base_model is {place}; an absolute path is accepted")
    return place, fingerprint
