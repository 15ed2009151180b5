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

#: The figures at plain noise, in the order of tables.
PLAIN = {
    name: f"{METRICS[name].title} {METRICS[name].arrow}".strip()
    for name in ("kid", "fid", "precision", "recall", "diversity", "sharpness", "drift", "latent_mse")
}
#: What `benchmarks.study.appearance` measured, beside an evaluation.
APPEARANCE = "appearance.json"


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
    """Evaluations of the same held-out rows: of each seed a folder for each arm, with the base in all of them."""

    folders: tuple[Mapping[str, Path], ...]

    def place(self, seed: int, model: str) -> Path | None:
        """The evaluation that a model is in."""
        return next((folder for folder in self.folders[seed].values() if model in _metrics(folder)), None)

    def estimate(self, model: str, figure: str) -> Estimate | None:
        """None where a model has no such figure, as the base has no drift."""
        places = [self.place(seed, model) for seed in range(len(self.folders))]
        found = [_metrics(one)[model][figure] for one in places if one is not None and figure in _metrics(one)[model]]
        return Estimate.of(found) if len(found) == len(self.folders) else None

    def kid_difference(self, model: str, other: str) -> Estimate | None:
        """KID of `model` less that of `other`, to the same targets, by the same resamples; None where one was not judged."""
        places = [(self.place(seed, model), self.place(seed, other)) for seed in range(len(self.folders))]
        if not all(mine and theirs for mine, theirs in places):
            return None
        pairs = [_kid_difference(mine, model, theirs, other) for mine, theirs in places if mine and theirs]
        return Estimate.over([value for value, _ in pairs], [half for _, half in pairs])


@cache
def _metrics(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Of each model, with its `appearance.json` where there is one."""
    found: dict[str, dict[str, dict[str, float]]] = json.loads((folder / "evaluation.json").read_text())["metrics"]
    appearance = folder / APPEARANCE
    if appearance.exists():
        for model, figures in json.loads(appearance.read_text()).items():
            found[model] = found.get(model, {}) | figures
    return found


@cache
def _features(folder: Path, model: str, column: str) -> np.ndarray:
    return Parts.of(folder).matrix(model, column)


@cache
def _kid_difference(folder: Path, model: str, others: Path, other: str) -> tuple[float, float]:
    """Of one seed, with half its interval."""
    targets = _features(folder, "base", "target_features")
    weights = statistics.resamples(len(targets), 0)
    sets = [_features(folder, model, "features"), _features(others, other, "features")]
    value = statistics.mmd(sets[0], targets, kernel_poly) - statistics.mmd(sets[1], targets, kernel_poly)
    spread = np.subtract(*(statistics.resampled_mmd(one, targets, kernel_poly, weights) for one in sets))
    return value, 1.96 * float(spread.std())


def table(judged: Judged, titles: Mapping[str, str], figures: Mapping[str, str]) -> str:
    """Markdown: a row for each model that `titles` names, a column for each figure, by its title, that any of them has."""
    cells = {
        title: [judged.estimate(model, name) for name in figures]
        for model, title in titles.items()
        if judged.estimate(model, "kid") is not None or model == "targets"
    }
    there = [k for k in range(len(figures)) if any(row[k] is not None for row in cells.values())]
    heads = list(figures.values())
    lines = ["| | " + " | ".join(heads[k] for k in there) + " |", "|---" * (len(there) + 1) + "|"]
    for title, row in cells.items():
        lines.append(f"| {title} | " + " | ".join("–" if row[k] is None else str(row[k]) for k in there) + " |")
    return "\n".join(lines)


def differences(judged: Judged, pairs: Sequence[tuple[str, str, str]]) -> str:
    """Markdown: of each (title, model, other) the difference of their KIDs, and what it says."""
    lines = ["| | KID less KID | |", "|---|---|---|"]
    for title, model, other in pairs:
        found = judged.kid_difference(model, other)
        if found is not None:
            said = "not told apart" if not found.apart_from_zero else "lower" if found.value < 0 else "**higher**"
            lines.append(f"| {title} | {found} | {said} |")
    return "\n".join(lines)
