"""The files of a training run's folder that make it resumable."""

import shutil
from pathlib import Path
from typing import Any

import ray.train
import torch

from ortho_core.text.parsing import NotParsedError, json_object, parse_json
from rayjobs.verb.plan import replace_text

#: The log: JSON lines with `update`, `group` and one key per figure.
HISTORY = "train_history.jsonl"

#: Figures and configuration of a finished run.
TRAIN_SUMMARY = "train_summary.json"

#: Why a run cannot go on. Ray Train would start the workers again after an error; they find this and do not try.
STOPPED = "stopped.txt"

#: The resumable state: in a checkpoint of Ray Train's, or in the run's folder where Ray Train keeps none (a run in the
#: driver's process, or what `rescue` kept).
STATE = "state.pt"


def save_state(content: dict[str, Any], file: Path) -> None:
    """Write a resumable state. Raises OSError, and leaves no part of a file."""
    try:
        with file.open("wb") as stream:
            torch.save(content, stream)
    except BaseException as error:
        file.unlink(missing_ok=True)
        # Of a full disk PyTorch says that a position is unexpected; what it was told is beneath.
        below = error.__context__
        if isinstance(error, RuntimeError) and isinstance(below, OSError):
            raise OSError(below.errno, below.strerror, str(file)) from error
        raise


def forget(out: Path) -> None:
    """Remove the resumable state of a run that is done."""
    shutil.rmtree(out / "state", ignore_errors=True)
    (out / STATE).unlink(missing_ok=True)


def rescue(out: Path) -> None:
    """Where a kill truncated Ray Train's list of checkpoints, keep the newest complete state and drop the rest.

    Ray Train overwrites that file in place, and cannot resume a run whose file is truncated.
    """
    folder = out / "state"
    listing = folder / "checkpoint_manager_snapshot.json"
    try:
        if not listing.is_file() or parse_json(listing.read_bytes()) is not None:
            return
    except ValueError:
        pass
    for state in sorted(folder.glob(f"*/{STATE}"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            load_state(state)
        except Exception:  # truncated as well
            continue
        state.replace(out / STATE)
        break
    shutil.rmtree(folder)


def saved_state(out: Path) -> dict[str, Any] | None:
    """The last resumable state of the run that this worker belongs to."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder) / STATE)
    return load_state(out / STATE) if (out / STATE).is_file() else None


def load_state(file: Path) -> dict[str, Any]:
    """Raises whatever PyTorch does for a file that is not whole."""
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def trim_history(file: Path, update: int) -> None:
    """Drop the entries of a log after the update that a run resumes from: those updates will be made again."""
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    kept = []
    for line in lines:
        try:
            if json_object(line, "a line")["update"] <= update and update:
                kept.append(line + "\n")
        except (NotParsedError, KeyError, TypeError):  # a line that a kill truncated
            continue
    replace_text(file, "".join(kept))
