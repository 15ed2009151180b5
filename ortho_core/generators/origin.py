"""The origin of a model, for model cards: the catalogue entry that `ortho download` fetched into its folder, or the model that
`ortho convert` made it from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortho_core.text.parsing import NotParsedError, json_file, parse_yaml

#: File with the downloads into a folder, by name of the catalogue entry. It is JSON without the suffix: the .json files of a
#: model folder are part of its fingerprint, which must not depend on how the model got there.
RECORD = ".ortho-download"
#: File with the fingerprints of a converted model and of its source. JSON without the suffix, too.
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
    """The downloads into a folder, by catalogue entry; empty if there are none, or if the record is broken."""
    try:
        record = json_file(folder / RECORD)
    except (OSError, NotParsedError):
        return {}
    return {name: entry for name, entry in record.items() if _is_entry(entry)}


def _is_entry(entry: object) -> bool:
    files = entry.get("files", {}) if isinstance(entry, dict) else None
    return isinstance(files, dict) and all(isinstance(file, dict) for file in files.values())


def origin_of(folder: Path) -> Origin | None:
    """The catalogue entry that was downloaded into a folder; None if there is none, or more than one."""
    record = read_record(folder)
    if len(record) != 1:
        return None
    ((name, entry),) = record.items()
    try:
        return Origin(name, *(str(entry[field]) for field in ("repository", "commit", "license")))
    except (KeyError, TypeError):
        return None


def base_name(folder: Path) -> str:
    """The name of a base model in a card: the repository it was downloaded from; for a model fine-tuned by Ortho, the base that
    its card names; otherwise the name of its folder or file."""
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
    """The name of a source model in a card: `base_name`; for a fine-tuned model also the name of its folder."""
    name, folder_name = base_name(folder), folder.absolute().name
    return name if origin_of(folder) is not None or name == folder_name else f"{folder_name}, fine-tuned from {name}"


def write_conversion(folder: Path, fingerprint: str, of: str) -> None:
    """Record that the model in a folder, with this fingerprint, was converted from the one with fingerprint `of` (with LoRAs)."""
    content = {"fingerprint": fingerprint, "converted_from": of}
    (folder / CONVERTED).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def converted_from(folder: Path, fingerprint: str) -> str | None:
    """The fingerprint of the model that a folder was converted from; None if it was not converted, or has changed since."""
    try:
        content = json_file(folder / CONVERTED)
        return str(content["converted_from"]) if content["fingerprint"] == fingerprint else None
    except (OSError, NotParsedError, KeyError):
        return None
