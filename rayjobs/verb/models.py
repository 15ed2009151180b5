"""The model that an option names: opened, with the LoRAs that are added to it, and what is to be said of it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.model_folder import ModelFolder, check_quantize
from rayjobs.verb.catalog import Entry, read_catalog
from rayjobs.verb.console import say


def open_model(
    place: Path, dtype: str | None = None, loras: Sequence[AddedLora] = (), quantize: str = "none"
) -> ModelFolder:
    """The model in `place` with `loras` added; says, for the precision `dtype`, which of several files will be loaded.

    Raises UserError, in one line: of a model that is not here but in the catalogue, with the command that brings it.
    """
    if not place.exists() and (answer := in_catalogue(place)):
        raise UserError(answer)
    model = ModelFolder.open(place).with_loras(loras)
    check_quantize(model, quantize)
    if dtype is not None and (line := model.files_used(dtype)):
        say(line)
    return model


def in_catalogue(place: Path) -> str:
    """How a model that is not there can be brought: one of the catalogue, by its name, its folder or its repository."""
    ending = "/".join(place.parts[-2:]).lower()
    models = {name: entry for name, entry in read_catalog().items() if entry.kind in ("generator", "base")}
    by_repository = {name: entry for name, entry in models.items() if ending == entry.repository.lower()}
    if by_repository:
        asked = f"{place} is no folder here"
        return f"model {asked}: {' or '.join(_bring(name, entry, Path('models')) for name, entry in by_repository.items())}"
    for name, entry in models.items():
        if place.name.lower() in (entry.model_folder.lower(), name.lower()):
            root = place.parent if place.parent != Path() and place.name == entry.model_folder else Path("models")
            return f"model folder {place} does not exist: {_bring(name, entry, root)}"
    return ""


def _bring(name: str, entry: Entry, root: Path) -> str:
    folder = root / entry.model_folder
    if folder.is_dir():
        return f"it is in {folder}, give --model {shlex.quote(str(folder))}"
    out = "" if root == Path("models") else f" --out {shlex.quote(str(root))}"
    return f"`ortho download --only {name}{out}` brings it, then give --model {shlex.quote(str(folder))}"
