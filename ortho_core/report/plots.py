"""The report's charts as PNG files, which jobs write next to their results."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ortho_core.report.charts import COLOURS, Chart, Series, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Charts per row, and the size of a chart in inches.
PANELS_PER_ROW, SIZE = 4, (4.5, 3.4)


def draw_charts(charts: Sequence[Chart], path: Path, size: tuple[float, float] = SIZE) -> None:
    """Draw charts row by row as one PNG; without charts no file is written. `size` is that of one chart, in inches."""
    from matplotlib.figure import Figure

    if not charts:
        return
    columns = min(PANELS_PER_ROW, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    places = np.ravel(figure.subplots(rows, columns))
    for axes, chart in zip(places, charts, strict=False):
        for series in chart.series:
            _draw(axes, series, chart.log_y)
        scale = "log" if chart.log_y else "linear"
        axes.set(xlabel=chart.x_label, yscale=scale, xlim=chart.x_range, ylim=chart.y_range)
        axes.minorticks_off()
        axes.set_xticks(*zip(*chart.x_places(), strict=True))
        axes.set_yticks(*zip(*chart.y_places(), strict=True))
        axes.set_title(chart.title, fontsize="medium")
        axes.grid(alpha=0.3)
        if any(series.label for series in chart.series):
            axes.legend(fontsize="small")
    for axes in places[len(charts) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def _draw(axes: "Axes", series: Series, log_y: bool) -> None:
    x, y, label = np.asarray(series.x, float), np.asarray(series.y, float), series.label or None
    colour, mean = COLOURS[series.colour][0], smoothed(y) if series.line and not series.area else None
    if log_y:  # for values without a logarithm, matplotlib would draw a line down to the axis
        y = np.where(y > 0, y, np.nan)
        mean = None if mean is None else np.where(mean > 0, mean, np.nan)
    if series.line and len(x):
        axes.plot(x, y if mean is None else mean, "--" if series.dashed else "-", color=colour, label=label)
        if series.area:
            axes.fill_between(x, y, color=colour, alpha=0.2, linewidth=0)
        if mean is not None:
            axes.plot(x, y, color=colour, alpha=0.35, linewidth=0.8)
    if series.points or len(x) == 1:
        across, upright = (_reach(v, ends) for v, ends in ((x, series.x_interval), (y, series.y_interval)))
        named = None if series.line else label
        axes.errorbar(x, y, upright, across, fmt="o", markersize=4, color=colour, elinewidth=0.8, label=named)
    for name, at in zip(series.names, zip(x, y, strict=True), strict=False):
        axes.annotate(name, at, xytext=(5, 4), textcoords="offset points", fontsize=7)


def _reach(values: np.ndarray, intervals: Sequence[tuple[float, float]]) -> np.ndarray | None:
    """The distances of the interval ends below and above the values, (2, points)."""
    if not intervals:
        return None
    low, high = np.asarray(intervals, float).T
    return np.abs(np.stack([values - low, high - values]))
