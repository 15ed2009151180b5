"""The curves that jobs leave beside their results."""

import json
from pathlib import Path

import numpy as np


def plot_history(history: Path, path: Path) -> None:
    """Draw the terms of a training log (JSON lines with `update` and one key per term) as a PNG."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in history.read_text().splitlines()]
    if not rows:
        return
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    updates = [row["update"] for row in rows]
    for name in [k for k in rows[0] if k != "update" and any(row[k] for row in rows)]:
        values = np.array([row[name] for row in rows])
        width = max(1, len(values) // 20)
        smooth = np.convolve(np.pad(values, (width - 1, 0), mode="edge"), np.ones(width) / width, mode="valid")
        (line,) = axes.plot(updates, values, alpha=0.25)
        axes.plot(updates, smooth, color=line.get_color(), label=name)
    axes.set(xlabel="update", ylabel="loss", yscale="log")
    axes.legend()
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
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
