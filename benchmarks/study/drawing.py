"""The study's pictures: figures over updates, and samples of each arm side by side."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.study.tables import Judged
from ortho_core.evaluation.metrics import METRICS
from ortho_core.evaluation.samples import from_png
from ortho_core.pictures import labelled_rows
from rayjobs.evaluate.figures import Parts

#: Of a picture's palette, which keeps it small.
COLOURS = 128
PANELS = ("kid", "sharpness", "diversity", "recall", "latent_mse", "drift")
ARMS = {"direct": "#c0392b", "matched": "#2471a3", "em": "#1e8449", "centered": "#b7950b"}
NAMES = {"direct": "direct SFT", "matched": "matched SFT", "em": "EM", "centered": "EM, centred noise"}


def draw_curves(judged: Mapping[float, Judged], updates: int, path: Path) -> None:
    """Each figure over the updates of all cycles; `judged` by preserve weight, `updates` of one cycle."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, name in zip(np.ravel(figure.subplots(2, 3)), PANELS, strict=True):
        for weight, style in zip(judged, ("-", "--"), strict=False):
            for arm in ARMS:
                _curve(axes, judged[weight], arm, name, updates, style, f"{NAMES[arm]}, preserve {weight:g}")
        base = next(iter(judged.values())).estimate("base", name)
        if base is not None:
            axes.axhline(base.value, color="grey", linewidth=1, label="base")
        axes.set(title=f"{METRICS[name].title} {METRICS[name].arrow}", xlabel="updates")
        axes.grid(alpha=0.3)
        if name == "kid":
            axes.set_yscale("log")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    Image.open(buffer).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _curve(axes: Axes, judged: Judged, arm: str, name: str, updates: int, style: str, label: str) -> None:
    cycles = [n for n in range(1, 9) if f"{arm}_{n}" in judged.models or (arm == "em" and n == 1)]
    # The first cycle of EM is matched SFT.
    found = [judged.estimate("matched_1" if (arm, n) == ("em", 1) else f"{arm}_{n}", name) for n in cycles]
    known = [(updates * n, one.value, one.half) for n, one in zip(cycles, found, strict=True) if one is not None]
    if known:
        x, y, half = map(np.array, zip(*known, strict=True))
        axes.plot(x, y, style, color=ARMS[arm], marker=".", label=label)
        axes.fill_between(x, y - half, y + half, color=ARMS[arm], alpha=0.1)


def draw_samples(evaluation: Path, titles: Mapping[str, str], count: int, path: Path) -> None:
    """Held-out targets, and each model's samples of their prompts at the same random noise."""
    parts = Parts.of(evaluation)

    def images(model: str, column: str) -> torch.Tensor:
        first = next(iter(parts.tables(model, [column])))
        return torch.stack([from_png(content) for content in first[column].to_pylist()[:count]])

    rows = {"targets": images(parts.models[0], "target")}
    rows |= {title: images(model, "sample") for model, title in titles.items() if model in parts.models}
    labelled_rows(rows, scale=2).quantize(COLOURS).save(path, optimize=True)
