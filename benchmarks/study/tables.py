"""From the evaluations of a study to tables and figures, over seeds.

A value is the mean over seeds. Its 95 % interval adds two parts: what the held-out rows leave open (the bootstrap interval of
one seed, squared and averaged; all seeds have the same rows, so more seeds do not shrink it) and what the seeds leave open (the
t interval of their mean).

Axes: S seeds, n rows, D features, R resamples.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from torch_fidelity.metric_kid import kernel_poly

from ortho_core.evaluation import statistics
from ortho_core.evaluation.metrics import METRICS
from rayjobs.evaluate.figures import Parts

#: The figures of the tables, in their order.
SHOWN = ("kid", "fid", "sharpness", "diversity", "recall", "precision", "latent_mse", "drift")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half its interval."""

    value: float
    half: float

    @staticmethod
    def over(values: Sequence[float], halves: Sequence[float]) -> "Estimate":
        """From each seed's value and half its bootstrap interval."""
        seeds = len(values)
        between = student.ppf(0.975, seeds - 1) * np.std(values, ddof=1) / math.sqrt(seeds) if seeds > 1 else 0.0
        return Estimate(float(np.mean(values)), float(math.hypot(np.sqrt(np.mean(np.square(halves))), between)))

    @staticmethod
    def of(figures: Sequence[Mapping[str, float]]) -> "Estimate":
        """From each seed's figure with its bootstrap interval."""
        return Estimate.over([one["value"] for one in figures], [(one["high"] - one["low"]) / 2 for one in figures])

    def __str__(self) -> str:
        digits = max(0, min(4, 1 - math.floor(math.log10(self.half)))) if self.half > 0 else 3
        return f"{self.value:.{digits}f} ± {self.half:.{digits}f}"

    @property
    def apart_from_zero(self) -> bool:
        return abs(self.value) > self.half


@dataclass(frozen=True)
class Judged:
    """The evaluations of one protocol, a folder for each seed."""

    folders: tuple[Path, ...]

    @property
    def models(self) -> list[str]:
        """Those that every seed has."""
        return [name for name in _metrics(self.folders[0]) if all(name in _metrics(f) for f in self.folders)]

    def estimate(self, model: str, figure: str) -> Estimate | None:
        """None where a model has no such figure, as the base has no drift."""
        found = [m[figure] for m in (_metrics(folder)[model] for folder in self.folders) if figure in m]
        if len(found) < len(self.folders):
            return None
        return Estimate.of(found)

    def kid_difference(self, model: str, other: str) -> Estimate:
        """KID of `model` less that of `other`, to the same targets, by the same resamples."""
        pairs = [_kid_difference(folder, model, other) for folder in self.folders]
        return Estimate.over([value for value, _ in pairs], [half for _, half in pairs])


@cache
def _metrics(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = json.loads((folder / "evaluation.json").read_text())["metrics"]
    return found


@cache
def _features(folder: Path, model: str, column: str) -> np.ndarray:
    return Parts.of(folder).matrix(model, column)


@cache
def _kid_difference(folder: Path, model: str, other: str) -> tuple[float, float]:
    """Of one seed, with half its interval."""
    base = next(iter(_metrics(folder)))
    targets = _features(folder, base, "target_features")
    weights = statistics.resamples(len(targets), 0)
    sets = [_features(folder, name, "features") for name in (model, other)]
    value = statistics.mmd(sets[0], targets, kernel_poly) - statistics.mmd(sets[1], targets, kernel_poly)
    spread = np.subtract(*(statistics.resampled_mmd(one, targets, kernel_poly, weights) for one in sets))
    return value, 1.96 * float(spread.std())


def table(judged: Judged, titles: dict[str, str]) -> str:
    """Markdown: a row for each model that `titles` names, a column for each figure."""
    shown = [name for name in SHOWN if judged.estimate(judged.models[-1], name) is not None]
    head = [f"{METRICS[name].title} {METRICS[name].arrow}".strip() for name in shown]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(shown) + 1) + "|"]
    for model, title in titles.items():
        if model in judged.models:
            cells = [judged.estimate(model, name) for name in shown]
            lines.append(f"| {title} | " + " | ".join("–" if one is None else str(one) for one in cells) + " |")
    return "\n".join(lines)


def differences(judged: Judged, pairs: Sequence[tuple[str, str, str]]) -> str:
    """Markdown: of each (title, model, other) the difference of their KIDs, and what it says."""
    lines = ["| | KID less KID | |", "|---|---|---|"]
    for title, model, other in pairs:
        if not {model, other} <= set(judged.models):
            continue
        found = judged.kid_difference(model, other)
        said = "not told apart" if not found.apart_from_zero else "lower" if found.value < 0 else "**higher**"
        lines.append(f"| {title} | {found} | {said} |")
    return "\n".join(lines)
