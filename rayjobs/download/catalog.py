"""The catalogue of downloadable models: what each consists of, where its files belong, which are missing. No network.

A model that is no pipeline by itself, a LoRA or the weights of a UNet, is two folders: one of its files as they are
published, and one of the pipeline that `rayjobs.download.assemble` makes of them and a base.
"""

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ortho_core.errors import UserError
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import RECORD, read_record
from rayjobs.download.config import CATALOG

COMMIT = r"[0-9a-f]{40}"


def inside(path: str) -> str:
    """The path itself. Raises ValueError for one that is not plainly relative, and inside of its folder."""
    parts = path.split("/")
    if not path or "\\" in path or ":" in path or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(
            f"{path!r} leads out of its folder; accepted: a relative path with / between its parts, without .."
        )
    return path


Inside = Annotated[str, AfterValidator(inside)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFile(_Part):
    """A file of the repository, under the same path in the model's folder."""

    path: Inside
    size: int | None = Field(None, ge=0)  #: bytes
    about: int | None = Field(None, ge=0)  #: bytes, where only a rounded figure is known
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    instead: tuple[Inside, ...] = ()

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def bytes_about(self) -> int:
        """The size as far as it is known; of small text files it is not."""
        return self.size or self.about or 0

    @model_validator(mode="after")
    def _one_size(self) -> "ModelFile":
        if self.size is not None and self.about is not None:
            raise ValueError(f"{self.path} has a size and an about; accepted: one of them")
        return self


class License(_Part):
    id: str = Field(min_length=1)
    commercial: Literal["yes", "conditional", "no", "unclear"]
    allows: str = Field(min_length=1)


class Recipe(_Part):
    """How one step is taken: the diffusers scheduler, what the network predicts, the timestep it is told."""

    scheduler: str
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    timestep: int = Field(ge=0, lt=1000)


class Assembly(_Part):
    how: Literal["lora", "unet"]
    base: str
    into: Inside


class Entry(_Part):
    title: str
    kind: Literal["generator", "base", "part", "reward"]
    folder: Inside
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[\w./-]+$")
    files: tuple[ModelFile, ...] = Field(min_length=1)
    license: License
    requires: tuple[str, ...] = ()
    recipe: Recipe | None = None
    assemble: Assembly | None = None

    @property
    def model_folder(self) -> str:
        """The folder to give to a command, under the models root."""
        return self.assemble.into if self.assemble else self.folder

    @property
    def bytes_about(self) -> int:
        return sum(file.bytes_about for file in self.files)

    @model_validator(mode="after")
    def _whole(self) -> "Entry":
        if (self.kind == "generator") != (self.recipe is not None):
            raise ValueError("a generator has a recipe, and nothing else has")
        if self.assemble and (len(self.files) != 1 or self.assemble.base not in self.requires):
            raise ValueError("what is assembled has one file, and its base among what it requires")
        return self


Catalog = Mapping[str, Entry]


def read_catalog(file: Path = CATALOG) -> dict[str, Entry]:
    """The entries by name, in the file's order. Raises UserError naming the file, the entry and the field."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"catalogue {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"catalogue {file} is not TOML: {error}") from error
    if set(content) != {"models"} or not isinstance(content["models"], dict):
        raise UserError(f"catalogue {file} has {sorted(content)} at its top; accepted: tables [models.NAME]")
    catalog = {name: _entry(file, name, value) for name, value in content["models"].items()}
    above: set[str] = set()
    for name, entry in catalog.items():
        for other in entry.requires:
            if other not in above:
                raise UserError(f"catalogue {file}: {name} requires {other!r}; accepted: entries above it")
        above.add(name)
    return catalog


def _entry(file: Path, name: str, content: object) -> Entry:
    try:
        return Entry.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, (name, *fault["loc"])))
        raise UserError(f"catalogue {file}: {place}: {fault['msg'].removeprefix('Value error, ')}") from error


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
    aside = folder / f"{RECORD}.{os.getpid()}"
    aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    aside.replace(folder / RECORD)


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
