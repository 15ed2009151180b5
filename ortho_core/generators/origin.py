"""Where a model comes from: the catalogue's entry that `ortho download` brought into its folder, or the model that `ortho
convert` made it of, and what a card says of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortho_core.text.parsing import NotParsedError, json_file, parse_yaml

#: What was downloaded into a folder, by the name of the entry. JSON; without its suffix, because the .json files of a model
#: folder are part of its fingerprint, and that of a model must not depend on how it got there.
RECORD = ".ortho-download"
#: What a folder was converted from, as two fingerprints. JSON, and no suffix either.
CONVERTED = ".ortho-convert"


@dataclass(frozen=True)
class Origin:
    """An entry of the catalogue, as it was downloaded."""

    name: str
    repository: str
    commit: str
    license: str

    def __str__(self) -> str:
        return f"{self.name} ({self.repository} at {self.commit}, licence {self.license})"


def read_record(folder: Path) -> dict[str, Any]:
    """What was downloaded into a folder, by entry; empty where nothing was, or the record is broken."""
    try:
        record = json_file(folder / RECORD)
    except (OSError, NotParsedError):
        return {}
    return {name: entry for name, entry in record.items() if _is_entry(entry)}


def _is_entry(entry: object) -> bool:
    files = entry.get("files", {}) if isinstance(entry, dict) else None
    return isinstance(files, dict) and all(isinstance(file, dict) for file in files.values())


def origin_of(folder: Path) -> Origin | None:
    """The one entry that was downloaded into a folder; None where none was, or several were."""
    record = read_record(folder)
    if len(record) != 1:
        return None
    ((name, entry),) = record.items()
    try:
        return Origin(name, *(str(entry[field]) for field in ("repository", "commit", "license")))
    except (KeyError, TypeError):
        return None


def base_name(folder: Path) -> str:
    """How a card names a model as a base: by the repository it was downloaded from; a fine-tuned one by that of its own base,
    which its card has; any other by the name of its folder or file."""
    if (origin := origin_of(folder)) is not None:
        return origin.repository
    try:
        _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        card = parse_yaml(front)
        earlier = card["base_model"]
        if "ortho" in card["tags"] and isinstance(earlier, str) and not Path(earlier).is_absolute():
            return earlier
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return folder.absolute().name


def model_name(folder: Path) -> str:
    """How a card names a model that it was made from: as `base_name`, and one that was fine-tuned by its own folder as well."""
    name, own = base_name(folder), folder.absolute().name
    return name if origin_of(folder) is not None or name == own else f"{own}, fine-tuned from {name}"


def write_conversion(folder: Path, fingerprint: str, of: str) -> None:
    """Say in a folder that the model there, with this fingerprint, is the one with the fingerprint `of`, LoRAs included."""
    content = {"fingerprint": fingerprint, "converted_from": of}
    (folder / CONVERTED).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def converted_from(folder: Path, fingerprint: str) -> str | None:
    """The fingerprint of the model that the one in a folder was made of; None where it was not, or has changed since."""
    try:
        content = json_file(folder / CONVERTED)
        return str(content["converted_from"]) if content["fingerprint"] == fingerprint else None
    except (OSError, NotParsedError, KeyError):
        return None
