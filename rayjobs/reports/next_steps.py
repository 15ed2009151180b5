"""The last lines of a command: what was made, where it is, and the next command to type.

The `ending` of each verb's job is built from these. A verb that runs inside another, as `assign` in `em`, prints no ending.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from ortho_core.errors import needed
from ortho_core.generators.lora_config import AddedLora, as_option
from ortho_core.generators.lora_reference import LORA_REFERENCE
from ortho_core.storage.open import open_store
from ortho_core.text.parsing import parse_model
from rayjobs.pool.ledger import ASSIGN_SUMMARY
from rayjobs.reports.words import counted

RETRY = "; when the cause is fixed, the same command with --retry-failures tries them again"


def beside(place: object, name: str) -> str:
    """The path or URL of `name` in the parent folder of `place`."""
    parent, slash, _ = str(place).rstrip("/").rpartition("/")
    return f"{parent}{slash}{name}"


def next_command(verb: str, **options: object) -> str:
    """The line with the next command; `prompt` and `model` may be placeholders that the user fills in."""
    arguments = (f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.items())
    return " ".join([f"next: ortho {verb}", *arguments])


def converting(model: object, loras: Sequence[AddedLora], out: object) -> str:
    """The command that writes a model with its LoRAs into one folder, since training needs a folder."""
    merge = ["--merge"] if (Path(str(model)) / LORA_REFERENCE).is_file() else []
    return shlex.join(["ortho", "convert", str(model), *merge, "--lora", as_option(loras), "--out", str(out)])


def training(model: object, loras: Sequence[AddedLora], assignments: str, **options: object) -> list[str]:
    """The lines of the next commands: train on assignments that were made with a model and these LoRAs."""
    out = beside(assignments, "trained")
    if not loras:
        return [next_command("train", model=model, assignments=assignments, **options, out=out)]
    # A model is always a local folder; assignments may be at a URL.
    folder = beside(assignments, "model") if "://" not in assignments else "FOLDER"
    train = next_command("train", model=folder, assignments=assignments, **options, out=out)
    return [f"next: {converting(model, loras, folder)}", train.replace("next:", "then:", 1)]


def generating(model: object, out: object, prompt: str = "a prompt", size: str | None = None) -> str:
    """The line of the next command: make images with a model, at a `size` other than its own if one is given."""
    sized = {} if size is None else {"size": size}
    return next_command("generate", model=model, prompt=prompt, **sized, out=out)


def left_out(place: object, code: int, rows: int, again: str = "") -> list[str]:
    """The line about quarantined rows, if a command ended with exit code 3."""
    return [f"{counted(rows, 'row')} left out: {place}/failures.jsonl has the reasons{again}"] if code == 3 else []


class _Settled(BaseModel):
    assigned: int
    quarantined: int


def settled_rows(place: str) -> tuple[int, int]:
    """Numbers of assigned and quarantined rows, from the summary in a folder."""
    summary = needed(parse_model, _Settled, open_store(place).read(ASSIGN_SUMMARY), f"{place}/{ASSIGN_SUMMARY}")
    return summary.assigned, summary.quarantined
