"""Which models of the catalogue are on this machine, and which of their files are missing. Uses no network."""

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
    """The named entries and those they require, each once, required ones first. Raises UserError for unknown names."""
    chosen: dict[str, None] = {}
    for name in names:
        if name not in catalog:
            raise UserError(f"--only {name!r} is not in the catalogue; accepted: all, {', '.join(catalog)}")
        chosen |= dict.fromkeys([*select(catalog, catalog[name].requires), name])
    return list(chosen)


def write_record(folder: Path, name: str, entry: Entry, commit: str, files: Mapping[str, Mapping[str, object]]) -> None:
    """Add the entry's files of this commit to the record in `folder`; `files` is `size` and `sha256` by path."""
    recorded = {
        "repository": entry.repository,
        "revision": entry.revision,
        "commit": commit,
        "license": entry.license.id,
        "files": files,
    }
    _add_to_record(folder, {name: recorded})


def merge_record(source: Path, folder: Path, only: str | None = None) -> None:
    """Add the record in `source` (only the entry `only`, if given) to the record in `folder`."""
    record = read_record(source)
    if added := record if only is None else {name: entry for name, entry in record.items() if name == only}:
        _add_to_record(folder, added)


def _add_to_record(folder: Path, added: Mapping[str, Any]) -> None:
    record = read_record(folder)
    for name, new in added.items():
        known = record.get(name, {})
        # Files of an earlier download are kept in the record if they are of the same commit.
        before = known.get("files", {}) if known.get("commit") == new["commit"] else {}
        record[name] = {**new, "files": {**before, **new["files"]}}
    open_store(folder).replace(RECORD, (json.dumps(record, indent=1) + "\n").encode())


def missing_files(name: str, entry: Entry, root: Path) -> list[ModelFile]:
    """The entry's files that are not in its folder, or do not have the size in the record, or else in the catalogue."""
    folder = root / entry.folder
    recorded = read_record(folder).get(name, {}).get("files", {})

    def here(file: ModelFile) -> bool:
        size = recorded.get(file.path, {}).get("size", file.size)
        if (folder / file.path).is_file():
            return size is None or (folder / file.path).stat().st_size == size
        return any((folder / other).is_file() for other in file.instead)

    return [file for file in entry.files if not here(file)]


def is_assembled(entry: Entry, root: Path) -> bool:
    """Whether the assembled pipeline of the entry exists. Its folder appears complete or not at all."""
    try:
        ModelFolder.open(root / entry.model_folder)
    except UserError:
        return False
    return True


def is_here(name: str, catalog: Catalog, root: Path) -> bool:
    """Whether an entry is complete, without those it requires. An assembled model no longer needs its separate files."""
    entry = catalog[name]
    return is_assembled(entry, root) if entry.assemble else not missing_files(name, entry, root)


def needed(names: Iterable[str], catalog: Catalog, root: Path) -> list[str]:
    """The incomplete ones of the named entries and those they require, in order. An assembled model needs no base."""
    todo: dict[str, None] = {}
    for name in names:
        if catalog[name].assemble and is_here(name, catalog, root):
            continue
        todo |= dict.fromkeys(needed(catalog[name].requires, catalog, root))
        if not is_here(name, catalog, root):
            todo[name] = None
    return list(todo)


def older_folders(entry: Entry, older: Path) -> list[Path]:
    """Folders that may have the entry's files: named like the entry's folder or its repository, a hub cache, or `older`."""
    owner, repository = entry.repository.split("/")
    snapshots = sorted((older / f"models--{owner}--{repository}" / "snapshots").glob("*"))
    pinned = [folder for folder in snapshots if folder.name == entry.revision]
    plain = [entry.folder, repository, entry.repository, f"{owner}--{repository}", f"{owner}_{repository}"]
    by_name = {folder.name.lower(): folder for folder in older.glob("*") if folder.is_dir()}
    named = [by_name.get(name.lower(), older / name) for name in plain]
    return [folder for folder in dict.fromkeys([*named, *pinned, *snapshots, older]) if folder.is_dir()]


def find_older(entry: Entry, files: Iterable[ModelFile], older: Path) -> dict[str, Path]:
    """Those of `files` that exist under `older`: their places by path. A file with a known size must have that size.

    Directly in `older` only weights are searched: a `config.json` there may belong to any model.
    """
    places: dict[str, Path] = {}
    for folder in older_folders(entry, older):
        for file in files:
            place = folder / file.path
            loose = folder == older and PurePosixPath(file.path).suffix in {".json", ".txt"}
            if file.path in places or loose or not place.is_file():
                continue
            if file.size is None or place.stat().st_size == file.size:
                places[file.path] = place
    return places
