"""Which models of the catalogue are here, and which of their files are missing. No network."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ortho_core.errors import UserError
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import RECORD, read_record
from ortho_core.storage.open import open_store
from rayjobs.verb.catalog import Catalog, Entry, ModelFile


def select(catalog: Catalog, names: Iterable[str]) -> list[str]:
    """The named entries and what they require, each once, what is required first. Raises UserError for unknown names."""
    chosen: dict[str, None] = {}
    for name in names:
        if name not in catalog:
            raise UserError(f"--only {name!r} is not in the catalogue; accepted: all, {', '.join(catalog)}")
        chosen |= dict.fromkeys([*select(catalog, catalog[name].requires), name])
    return list(chosen)


def write_record(folder: Path, name: str, entry: Entry, commit: str, files: Mapping[str, Mapping[str, object]]) -> None:
    """Add to the record that these files (`size`, `sha256`, by path) are those of the entry at that commit."""
    own = {
        "repository": entry.repository,
        "revision": entry.revision,
        "commit": commit,
        "license": entry.license.id,
        "files": files,
    }
    _add_to_record(folder, {name: own})


def merge_record(source: Path, folder: Path, only: str | None = None) -> None:
    """Add what is recorded in one folder, or of one entry `only`, to the record of another."""
    record = read_record(source)
    if added := record if only is None else {name: entry for name, entry in record.items() if name == only}:
        _add_to_record(folder, added)


def _add_to_record(folder: Path, added: Mapping[str, Any]) -> None:
    record = read_record(folder)
    for name, own in added.items():
        known = record.get(name, {})
        # Of the same commit, it is the rest of an earlier download.
        before = known.get("files", {}) if known.get("commit") == own["commit"] else {}
        record[name] = {**own, "files": {**before, **own["files"]}}
    open_store(folder).replace(RECORD, (json.dumps(record, indent=1) + "\n").encode())


def missing_files(name: str, entry: Entry, root: Path) -> list[ModelFile]:
    """The entry's files that are not in its folder, or not of the size they have, by record or else by catalogue."""
    folder = root / entry.folder
    recorded = read_record(folder).get(name, {}).get("files", {})

    def here(file: ModelFile) -> bool:
        size = recorded.get(file.path, {}).get("size", file.size)
        if (folder / file.path).is_file():
            return size is None or (folder / file.path).stat().st_size == size
        return any((folder / other).is_file() for other in file.instead)

    return [file for file in entry.files if not here(file)]


def is_assembled(entry: Entry, root: Path) -> bool:
    """Whether the pipeline that the entry is assembled into is there. A folder appears whole or not at all."""
    try:
        ModelFolder.open(root / entry.model_folder)
    except UserError:
        return False
    return True


def is_here(name: str, catalog: Catalog, root: Path) -> bool:
    """Whether nothing is left to do for an entry, what it requires aside. An assembled model needs its files no more."""
    entry = catalog[name]
    return is_assembled(entry, root) if entry.assemble else not missing_files(name, entry, root)


def needed(names: Iterable[str], catalog: Catalog, root: Path) -> list[str]:
    """Of the named entries and what they require, what is left to do, in order: no base of what is assembled already."""
    todo: dict[str, None] = {}
    for name in names:
        if catalog[name].assemble and is_here(name, catalog, root):
            continue
        todo |= dict.fromkeys(needed(catalog[name].requires, catalog, root))
        if not is_here(name, catalog, root):
            todo[name] = None
    return list(todo)


def older_folders(entry: Entry, older: Path) -> list[Path]:
    """Where an older layout may have the entry's files: a folder named as here or as the repository, or `older` itself."""
    owner, repository = entry.repository.split("/")
    snapshots = sorted((older / f"models--{owner}--{repository}" / "snapshots").glob("*"))
    pinned = [folder for folder in snapshots if folder.name == entry.revision]
    plain = [entry.folder, repository, entry.repository, f"{owner}--{repository}", f"{owner}_{repository}"]
    by_name = {folder.name.lower(): folder for folder in older.glob("*") if folder.is_dir()}
    found = [by_name.get(name.lower(), older / name) for name in plain]
    return [folder for folder in dict.fromkeys([*found, *pinned, *snapshots, older]) if folder.is_dir()]


def find_older(entry: Entry, files: Iterable[ModelFile], older: Path) -> dict[str, Path]:
    """Which of `files` lie under `older` already, by path. Files of an exact size must have it.

    In `older` itself only weights are looked for: a `config.json` there may be any model's.
    """
    found: dict[str, Path] = {}
    for folder in older_folders(entry, older):
        for file in files:
            place = folder / file.path
            loose = folder == older and PurePosixPath(file.path).suffix in {".json", ".txt"}
            if file.path in found or loose or not place.is_file():
                continue
            if file.size is None or place.stat().st_size == file.size:
                found[file.path] = place
    return found
