"""The study's picture: samples of each arm side by side."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ortho_core.evaluation.samples import from_png
from ortho_core.pictures import labelled_rows
from rayjobs.evaluate.figures import Parts

#: Of a picture's palette, which keeps it small.
COLOURS = 128


def draw_samples(places: Mapping[str, Path], titles: Mapping[str, str], count: int, path: Path) -> None:
    """Held-out targets, and each model's samples of their prompts at the same random noise, from its evaluation."""

    def images(model: str, column: str) -> torch.Tensor:
        first = next(iter(Parts.of(places[model]).tables(model, [column])))
        return torch.stack([from_png(content) for content in first[column].to_pylist()[:count]])

    rows = {"targets": images("base", "target")} | {
        titles[model].replace(", ", "\n"): images(model, "sample") for model in places
    }
    labelled_rows(rows, scale=2).quantize(COLOURS).save(path, optimize=True)
