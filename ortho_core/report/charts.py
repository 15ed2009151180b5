"""Small charts: lines and points with intervals over common axes, and their geometry for the report's template.

`plots` draws the same charts as PNG files. In the report, the style sheet sets fonts and line widths. A chart is 350 units wide,
about the width of a phone, so that its text is as large as the page's. A wide screen shows several charts next to each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

WIDTH, HEIGHT = 350, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 40
#: Largest number of points of a drawn line; each is the mean of several values if there are more.
MOST_POINTS = 300
#: A line of more points than this is drawn faintly, with its running mean on top.
MANY_POINTS = 40
#: (on a light page, on a dark page). The first is neutral, for the series that the others are compared with.
COLOURS = (
    ("#6b7580", "#98a2ac"),
    ("#1f6fc0", "#69aef2"),
    ("#c8571b", "#f29560"),
    ("#2a8a57", "#62c592"),
    ("#8a4fb8", "#c196ea"),
    ("#b3306b", "#ee83b3"),
    ("#8f7400", "#d3b840"),
)


@dataclass(frozen=True)
class Series:
    """A line, or points, of a chart; without a label it is not in the legend.

    `x_interval` and `y_interval` are (low, high) of each point. `notes` are shown when the pointer is over a point; `names` are
    written next to the points of a PNG. `colour` is an index into `COLOURS`. Values that are not finite are left out.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    points: bool = False
    line: bool = True
    dashed: bool = False
    #: For a histogram's outline: filled down to the axis, and never smoothed.
    area: bool = False
    x_interval: Sequence[tuple[float, float]] = ()
    y_interval: Sequence[tuple[float, float]] = ()
    notes: Sequence[str] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class DrawnPoint:
    """A point, with the ends of its intervals: (left, right) and (top, bottom)."""

    x: float
    y: float
    across: tuple[float, float] | None
    upright: tuple[float, float] | None
    note: str


@dataclass(frozen=True)
class Drawn:
    """A series in the chart's coordinates: `lines` and `faint` are SVG point lists."""

    colour: int
    dashed: bool
    lines: list[str]
    faint: list[str]
    marks: list[DrawnPoint]
    area: bool = False


@dataclass(frozen=True)
class Chart:
    """Series over common axes. `title` names the y axis; `caption` is the sentence below the chart."""

    title: str
    x_label: str
    series: Sequence[Series]
    caption: str = ""
    log_y: bool = False
    #: Values that the axes always include.
    x_includes: Sequence[float] = ()
    y_includes: Sequence[float] = field(default=())

    width, height, left, top = WIDTH, HEIGHT, LEFT, TOP
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    @property
    def alt(self) -> str:
        return f"{self.title} over {self.x_label}: {', '.join(series.label for series in self.series if series.label)}"

    @cached_property
    def x_range(self) -> tuple[float, float]:
        ends = [v for s in self.series for v in (*s.x, *(end for pair in s.x_interval for end in pair))]
        return limits([*ends, *self.x_includes], log=False, margin=0.04 if any(s.points for s in self.series) else 0)

    @cached_property
    def y_range(self) -> tuple[float, float]:
        ends = [v for s in self.series for v in (*s.y, *(end for pair in s.y_interval for end in pair))]
        return limits([*ends, *self.y_includes], self.log_y, margin=0.06)

    def across(self, x: float) -> float:
        low, high = self.x_range
        return LEFT + (x - low) / (high - low) * (self.right - LEFT)

    def down(self, y: float) -> float:
        low, high = (math.log(v) if self.log_y else v for v in self.y_range)
        at = math.log(max(y, 1e-300)) if self.log_y else y
        return self.bottom - (at - low) / (high - low) * (self.bottom - TOP)

    def x_places(self) -> list[tuple[float, str]]:
        """The values of the ticks and their texts."""
        integers = all(float(v).is_integer() for s in self.series for v in s.x)
        return ticks(*self.x_range, log=False, whole=integers)

    def y_places(self) -> list[tuple[float, str]]:
        return ticks(*self.y_range, log=self.log_y)

    def x_ticks(self) -> list[Tick]:
        return [Tick(self.across(v), text) for v, text in self.x_places()]

    def y_ticks(self) -> list[Tick]:
        return [Tick(self.down(v), text) for v, text in self.y_places()]

    def drawn(self) -> list[Drawn]:
        return [self._drawn(series) for series in self.series]

    def _drawn(self, series: Series) -> Drawn:
        x, y = np.asarray(series.x, float), np.asarray(series.y, float)
        faint, lines = [], []
        if series.line and len(x):
            mean = None if series.area else smoothed(y)
            lines = self._points(x, y if mean is None else mean)
            faint = [] if mean is None else self._points(x, y)
        pointed = series.points or len(x) == 1  # one point makes no line
        marks = [self._mark(series, i) for i in range(len(x)) if self._shown(x[i], y[i])] if pointed else []
        return Drawn(series.colour, series.dashed, lines, faint, marks, series.area)

    def _shown(self, x: float, y: float) -> bool:
        return math.isfinite(x) and math.isfinite(y) and bool(y > 0 or not self.log_y)

    def _points(self, x: np.ndarray, y: np.ndarray) -> list[str]:
        """SVG point lists, a new one after each gap in the values."""
        pieces: list[list[str]] = [[]]
        for a, b in zip(thinned(x), thinned(y), strict=True):
            if self._shown(a, b):
                pieces[-1].append(f"{self.across(a):.1f},{self.down(b):.1f}")
            elif pieces[-1]:
                pieces.append([])
        return [" ".join(piece) for piece in pieces if piece]

    def _mark(self, series: Series, i: int) -> DrawnPoint:
        x, y = series.x[i], series.y[i]
        (left, right), (low, high) = (
            ends[i] if ends else (None, None) for ends in (series.x_interval, series.y_interval)
        )
        across = (self.across(left), self.across(right)) if left is not None and right is not None else None
        upright = (self.down(low), self.down(high)) if low is not None and high is not None else None
        note = series.notes[i] if series.notes else f"{series.label}: {self.x_label} {x:.4g}, {self.title} {y:.4g}"
        return DrawnPoint(self.across(x), self.down(y), across, upright, note)


def histogram(label: str, values: Sequence[float], edges: Sequence[float], colour: int) -> Series:
    """The share of the values (in percent) between each two edges; values outside the edges count in the outermost bins."""
    inside = np.clip(np.asarray(values, float), edges[0], edges[-1])
    share = 100 * np.histogram(inside, np.asarray(edges))[0] / len(values)
    outline = np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
    return Series(label, np.repeat(edges, 2).tolist(), outline.tolist(), colour, area=True)


def limits(values: Sequence[float], log: bool, margin: float) -> tuple[float, float]:
    """The range of an axis: that of the finite (with `log`, positive) values, extended by `margin` of it at each end."""
    kept = [float(v) for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not kept:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(kept), max(kept)
    if log:
        room = max((high / low) ** margin, 1.1 if high == low else 1)
        return low / room, high * room
    if high == low:
        return (low - abs(low) / 10 - 1e-9, high + abs(high) / 10 + 1e-9)
    return low - margin * (high - low), high + margin * (high - low)


def ticks(low: float, high: float, log: bool, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers between `low` and `high` with their texts; with `log`, powers of ten and some of their multiples.

    `whole` allows only integers.
    """
    from matplotlib.ticker import MaxNLocator

    if not log:
        places = MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
        step = places[1] - places[0]
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        kept = [v for v in places if low - 1e-9 * step <= v <= high + 1e-9 * step]
        return [(float(v), f"{v:,.{digits}f}" if abs(v) < 1e6 and digits < 6 else f"{v:.3g}") for v in kept]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        values = [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]
        if len(values) >= 3:
            break
    else:
        return ticks(low, high, log=False)
    apart = -(-len(values) // 6)
    return [(v, f"{v:.6g}" if 1e-4 <= v < 1e6 else f"{v:.0e}") for v in values[::apart]]


def smoothed(values: np.ndarray) -> np.ndarray | None:
    """The running mean that is drawn over a line of many points; None for a line of few points."""
    return running_mean(values, max(1, len(values) // 20)) if len(values) > MANY_POINTS else None


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` values at each place, or of all values so far if there are fewer. Skips non-finite values."""
    known = np.isfinite(values)
    total = np.cumsum(np.where(known, values, 0.0))
    count = np.cumsum(known)
    total[width:], count[width:] = total[width:] - total[:-width], count[width:] - count[:-width]
    return np.where(known, total / np.maximum(count, 1), np.nan)


def thinned(values: np.ndarray) -> np.ndarray:
    """At most MOST_POINTS values: the means of the finite values in MOST_POINTS stretches of about equal length."""
    if len(values) <= MOST_POINTS:
        return values
    stretches = np.array_split(values, MOST_POINTS)
    return np.array([s[np.isfinite(s)].mean() if np.isfinite(s).any() else np.nan for s in stretches])
