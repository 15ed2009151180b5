"""Opens the model that an option names, with the LoRAs added to it; a missing model's message names the download."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.framing.image_size import size_of
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.model_folder import ModelFolder, check_quantize
from rayjobs.verb.catalog import Entry, read_catalog
from rayjobs.verb.console import say

#: Bytes of weights from which counting a model's memory takes long.
LARGE = 1 << 30


def open_model(
    place: Path,
    dtype: str | None = None,
    loras: Sequence[AddedLora] = (),
    quantize: str = "none",
    size: str | None = None,
) -> ModelFolder:
    """The model in `place` with `loras` added, for images of `size` (`WIDTHxHEIGHT`; None: the model's own).

    With a `dtype`, prints which of several weight files will be loaded.

    Raises UserError. For a missing model of the catalogue, its message has the command that downloads it.
    """
    if not place.exists() and (answer := in_catalogue(place)):
        raise UserError(answer)
    model = ModelFolder.open(place).with_loras(loras).at(size_of(size))
    check_quantize(model, quantize)
    if dtype is not None and (line := model.files_used(dtype)):
        say(line)
    return model


def say_counting(model: ModelFolder) -> None:
    """Print that the memory of a large model is being counted; small ones take seconds."""
    if model.base.weight_bytes > LARGE:
        say(f"memory: counting what {model.path} needs, up to a minute for each way to run it; kept in ~/.cache/ortho")


def in_catalogue(place: Path) -> str:
    """The message for a missing model that is in the catalogue, found by name, folder or repository; "" if it is not."""
    ending = "/".join(place.parts[-2:]).lower()
    models = {name: entry for name, entry in read_catalog().items() if entry.kind in ("generator", "base")}
    by_repository = {name: entry for name, entry in models.items() if ending == entry.repository.lower()}
    if by_repository:
        ways = " or ".join(_bring(name, entry, Path("models")) for name, entry in by_repository.items())
        return f"model folder {place} does not exist: {ways}"
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
    return f"`ortho download --only {name}{out}` downloads it, then give --model {shlex.quote(str(folder))}"
