"""The files of a training run's folder that make it resumable."""

import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ortho_core.storage.aside import aside
from ortho_core.text.parsing import NotParsedError, json_object
from rayjobs.verb.plan import replace_text

#: The log: JSON lines with `update`, `group` and one key per figure.
HISTORY = "train_history.jsonl"

#: Figures and configuration of a finished run.
TRAIN_SUMMARY = "train_summary.json"

#: The reason why a run cannot continue. Ray Train starts the workers again after an error; with this file they stop at once.
STOPPED = "stopped.txt"

#: The folder of the resumable states, which are named by their update, and the folder of Ray Train's own files.
STATES, RAY_NOTES = "state", ".ray-train"
_STATE = re.compile(r"update-(\d{8,})\.pt")


def forget(out: Path) -> None:
    """Remove the resumable states of a run that is done."""
    for folder in (STATES, RAY_NOTES):
        shutil.rmtree(out / folder, ignore_errors=True)


def save_state(out: Path, update: int, content: Mapping[str, Any], keep: int) -> None:
    """Write the state after an update, completely or not at all, and delete all but the last `keep`. Raises OSError."""
    place = out / STATES / f"update-{update:08d}.pt"
    place.parent.mkdir(exist_ok=True)
    fresh = aside(place)
    try:
        with fresh.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, place)
    except Exception as error:
        # For a full disk PyTorch raises "unexpected pos"; the OSError is its context.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(place)) from error
        raise
    finally:
        fresh.unlink(missing_ok=True)
    for old in states(out)[keep:]:
        old.unlink(missing_ok=True)


def states(out: Path) -> list[Path]:
    """The resumable states, the latest first."""
    files = [file for file in (out / STATES).glob("*.pt") if _STATE.fullmatch(file.name)]
    return sorted(files, key=lambda file: int(file.stem.removeprefix("update-")), reverse=True)


def drop_damaged_states(out: Path) -> list[Path]:
    """Delete and return the damaged states that are newer than the latest intact one, from which training continues."""
    damaged = []
    for state in states(out):
        if _is_whole(state):
            break
        state.unlink()
        damaged.append(state)
    return damaged


def _is_whole(state: Path) -> bool:
    """Whether the checksums inside a PyTorch file are right. It is read as a stream, since it may be larger than the memory."""
    try:
        with zipfile.ZipFile(state) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, EOFError):
        return False


def saved_state(out: Path) -> dict[str, Any] | None:
    """The last resumable state of a run; None if there is none."""
    return load_state(saved[0]) if (saved := states(out)) else None


def load_state(file: Path) -> dict[str, Any]:
    """Read a state. Raises PyTorch's errors for a damaged file."""
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def trim_history(file: Path, update: int) -> None:
    """Delete the entries of a log after the update that a run resumes from, since later updates are made again."""
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    kept = []
    for line in lines:
        try:
            if json_object(line, "a line")["update"] <= update and update:
                kept.append(line + "\n")
        except (NotParsedError, KeyError, TypeError):  # a line cut off when the process was killed
            continue
    replace_text(file, "".join(kept))
