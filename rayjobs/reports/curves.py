"""Charts of a run: the loss terms of training logs over updates, and those of a search over its evaluations."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ortho_core.report.charts import COLOURS, Chart, Series
from ortho_core.text.parsing import NotParsedError, json_object

#: Titles of the charts by group and figure of a training log. A figure whose values are all 0 has no chart.
TITLES = {
    "train": {
        "loss": "training loss",
        "latent": "latent loss",
        "pixel": "pixel L1",
        "preserve_latent": "latent drift at random noise",
        "preserve_pixel": "pixel drift at random noise",
        "match_initial": "loss before matching",
        "match_final": "loss after matching",
        "discriminator": "loss of the discriminator",
    },
    "validation": {
        "latent": "held-out latent MSE",
        "drift": "held-out drift",
        "ema_latent": "held-out latent MSE, averaged weights",
        "ema_drift": "held-out drift, averaged weights",
    },
}
#: Up to this many evaluations, each has a point in the chart.
POINTS = 60


@dataclass(frozen=True)
class TrainingLog:
    """The log of one training run, JSON lines with `update`, `group` and one key per figure; empty without a file.

    `shift` is added to its updates, so that runs can follow each other on one axis.
    """

    file: Path
    label: str = ""
    colour: int = 1
    shift: int = 0

    def entries(self) -> list[dict[str, Any]]:
        """The lines that are entries. The last line may be cut, if the process was killed."""
        if not self.file.is_file():
            return []
        entries = []
        for line in self.file.read_bytes().splitlines():
            with suppress(NotParsedError):
                entry = json_object(line, "a line")
                if "group" in entry and _is_number(entry.get("update")):
                    entries.append(entry)
        return entries


def training_charts(logs: Sequence[TrainingLog]) -> list[Chart]:
    """One chart per figure, with a line for each log."""
    read = [(log, log.entries()) for log in logs]
    charts = []
    for group, titles in TITLES.items():
        for term, title in titles.items():
            series = [_series(log, entries, group, term) for log, entries in read]
            # A line of zeros, as of a term without weight, is left out.
            series = [s for s in series if any(v and math.isfinite(v) for v in s.y)]
            if series:
                charts.append(Chart(title, "update", series, log_y=not any(v < 0 for s in series for v in s.y)))
    return charts


def _series(log: TrainingLog, entries: Sequence[Mapping[str, Any]], group: str, term: str) -> Series:
    mine = [entry for entry in entries if entry["group"] == group and _is_number(entry.get(term))]
    updates, values = [log.shift + entry["update"] for entry in mine], [entry[term] for entry in mine]
    return Series(log.label, updates, values, log.colour, points=group == "validation")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def loss_chart(history: Mapping[str, Sequence[float]]) -> Chart:
    """The terms of one E-step over its evaluations."""
    drawn = {name: values for name, values in history.items() if any(values)}
    series = [
        Series(name, _evaluations(values), values, 1 + i % (len(COLOURS) - 1), points=True)
        for i, (name, values) in enumerate(drawn.items())
    ]
    return Chart("loss", "evaluation", series, log_y=True)


def reward_charts(history: Mapping[str, Sequence[float]]) -> list[Chart]:
    """Each reward over the evaluations of one search, and the best so far. One chart per reward, since scales differ."""
    charts = []
    for name, values in history.items():
        best = np.maximum.accumulate(values).tolist()
        steps = _evaluations(values)
        each = Series("evaluation", steps, values, 0, points=len(steps) <= POINTS)
        charts.append(Chart(name, "evaluation", [each, Series("best so far", steps, best, 1)]))
    return charts


def _evaluations(values: Sequence[float]) -> list[int]:
    return list(range(1, len(values) + 1))
