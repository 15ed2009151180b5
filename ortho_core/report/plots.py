"""The curves that jobs leave beside their results."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

#: Terms of the training log that a curve is drawn of.
CURVES = ("loss", "latent", "pixel", "preserve_latent", "preserve_pixel")


def plot_training(history: Path, path: Path, curves: Sequence[str] = CURVES) -> None:
    """Draw a training log as a PNG: the loss and its terms, and beside them the validation where there was one.

    The log is JSON lines with `update`, `group` (train or validation) and one key per figure.
    """
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in history.read_text().splitlines()]
    groups = {name: [row for row in rows if row["group"] == name] for name in ("train", "validation")}
    drawn = [name for name, entries in groups.items() if entries]
    if not drawn:
        return
    figure = Figure(figsize=(7 * len(drawn), 3.6), layout="constrained")
    for axes, group in zip(np.ravel(figure.subplots(1, len(drawn))), drawn, strict=True):
        entries = groups[group]
        updates = [row["update"] for row in entries]
        for name in curves if group == "train" else [k for k in entries[0] if k not in ("update", "group")]:
            values = np.array([row[name] for row in entries])
            if not (values > 0).any():
                continue
            values = np.where(values > 0, values, np.nan)  # a drift of 0 has no place on a logarithmic axis
            width = max(1, len(values) // 20) if group == "train" else 1
            smooth = np.convolve(np.pad(values, (width - 1, 0), mode="edge"), np.ones(width) / width, mode="valid")
            (line,) = axes.plot(updates, values, alpha=0.25)
            axes.plot(updates, smooth, color=line.get_color(), label=name)
        axes.set(xlabel="update", ylabel="loss" if group == "train" else "held-out rows, latent MSE", yscale="log")
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def plot_steps(history: dict[str, list[float]], path: Path) -> None:
    """Draw the terms of one E-step over its evaluations as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in history.items():
        if any(values):
            axes.plot(range(1, len(values) + 1), values, marker=".", label=name)
    axes.set(xlabel="evaluation", ylabel="loss", yscale="log")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def plot_rewards(history: dict[str, list[float]], path: Path) -> None:
    """Draw each reward over the evaluations of one search as a PNG, one panel per reward: their scales differ."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(history), 3.4), layout="constrained")
    for axes, (name, values) in zip(np.ravel(figure.subplots(1, len(history))), history.items(), strict=True):
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, marker=".", alpha=0.5, label="evaluation")
        axes.plot(steps, np.maximum.accumulate(values), label="best so far")
        axes.set(xlabel="evaluation", ylabel=name)
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
