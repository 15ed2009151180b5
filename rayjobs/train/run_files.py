"""The files of a training run's folder that make it resumable."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from rayjobs.verb.plan import replace_text

#: What a finished run says of itself.
SUMMARY = "train_summary.json"


def forget(out: Path) -> None:
    """Remove the resumable state of a run that is done."""
    shutil.rmtree(out / "state", ignore_errors=True)
    (out / OWN_STATE).unlink(missing_ok=True)


def rescue(out: Path) -> None:
    """Where a kill cut short Ray Train's own list of checkpoints, keep the newest whole state and drop the rest.

    Ray Train replaces that file in place, and would start no run again that has half of it.
    """
    folder = out / "state"
    listing = folder / "checkpoint_manager_snapshot.json"
    try:
        if not listing.is_file() or json.loads(listing.read_text()) is not None:
            return
    except ValueError:
        pass
    for state in sorted(folder.glob("*/state.pt"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            torch.load(state, map_location="cpu", weights_only=True)
        except Exception:  # cut short as well
            continue
        state.replace(out / OWN_STATE)
        break
    shutil.rmtree(folder)


HISTORY = "train_history.jsonl"

#: Why a run cannot go on. Ray Train would start the workers again after an error; they find this and do not try.
STOPPED = "stopped.txt"

#: The resumable state where Ray Train has none: of a run in the driver's process, or what `rescue` found.
OWN_STATE = "state.pt"


def saved_state(out: Path) -> dict[str, Any] | None:
    """The last resumable state of the run that this worker belongs to."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        own = out / OWN_STATE
        return dict(torch.load(own, map_location="cpu", weights_only=True)) if own.is_file() else None
    with checkpoint.as_directory() as folder:
        return dict(torch.load(os.path.join(folder, "state.pt"), map_location="cpu", weights_only=True))


def trim_history(file: Path, update: int) -> None:
    """Drop what a log holds of updates after the state that a run resumes from: they will be made again."""
    lines = file.read_text().splitlines() if file.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["update"] <= update and update:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # the line that a kill cut short
            continue
    replace_text(file, "".join(kept))
