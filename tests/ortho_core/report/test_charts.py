"""The geometry of the report's charts."""

import math

import numpy as np
import pytest

from ortho_core.report.charts import MANY_POINTS, MOST_POINTS, Chart, Series, histogram, running_mean, thinned, ticks


def points(text):
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


@pytest.mark.parametrize("log_y", [False, True])
def test_points_lie_where_the_ticks_say(log_y):
    chart = Chart("loss", "update", [Series("a", [0, 50, 100], [1.0, 10.0, 100.0])], log_y=log_y)
    (line,) = chart.drawn()[0].lines
    x, y = zip(*points(line), strict=True)
    across = {tick.text: tick.at for tick in chart.x_ticks()}
    down = {tick.text: tick.at for tick in chart.y_ticks()}
    assert (across["0"], across["100"]) == pytest.approx((x[0], x[2]), abs=0.1)
    assert down["100"] == pytest.approx(y[2], abs=0.1)
    halfway = (y[0] - y[1]) / (y[0] - y[2])
    assert halfway == pytest.approx(0.5 if log_y else 9 / 99, abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (-3e-4, 2e-4, False), (0.1, 0.9, True), (3e-7, 5e4, True), (0.31, 0.33, True), (5, 5.0001, False)],
)
def test_ticks_are_round_distinct_and_inside(low, high, log):
    found = ticks(low, high, log)
    texts = [text for _, text in found]
    assert 2 <= len(found) <= 9
    assert len(set(texts)) == len(texts)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in found)
    assert all(float(text.replace(",", "")) == pytest.approx(value, abs=1e-9, rel=1e-3) for value, text in found)


def test_counts_have_whole_ticks_and_a_single_point_is_seen():
    chart = Chart("loss", "update", [Series("a", [2, 4], [0.6, 0.5]), Series("b", [2], [0.4])])
    assert [tick.text for tick in chart.x_ticks()] == ["2", "3", "4"]
    assert [len(drawn.marks) for drawn in chart.drawn()] == [0, 1]


def test_values_without_a_place_leave_a_gap():
    values = [0.5, math.nan, 0.4, 0.3, 0.0, 0.2]
    chart = Chart("loss", "update", [Series("a", range(6), values, points=True)], log_y=True)
    drawn = chart.drawn()[0]
    assert [len(points(line)) for line in drawn.lines] == [1, 2, 1]
    assert len(drawn.marks) == 4
    assert Chart("loss", "x", [Series("a", [], [])]).drawn()[0].lines == []


def test_a_long_log_is_drawn_through_few_points_with_its_running_mean():
    values = np.random.default_rng(0).normal(5, 1, 20_000).tolist()
    drawn = Chart("loss", "update", [Series("a", range(len(values)), values)]).drawn()[0]
    assert [len(points(line)) for line in (*drawn.lines, *drawn.faint)] == [MOST_POINTS] * 2
    spread = [np.std([y for _, y in points(lines[0])]) for lines in (drawn.lines, drawn.faint)]
    assert spread[0] < spread[1] / 3
    short = Chart("loss", "update", [Series("a", range(MANY_POINTS), values[:MANY_POINTS])]).drawn()[0]
    assert not short.faint


def test_the_running_mean_is_that_of_the_last_values():
    values = np.array([1.0, 2.0, np.nan, 4.0, 8.0])
    expected = [1.0, 1.5, np.nan, 4.0, 6.0]
    assert running_mean(values, 2) == pytest.approx(expected, nan_ok=True)
    assert thinned(np.arange(4.0)) == pytest.approx(np.arange(4.0))


def test_intervals_span_their_ends():
    series = Series("a", [1.0], [2.0], points=True, x_interval=[(0.0, 3.0)], y_interval=[(1.0, 4.0)])
    chart = Chart("fit", "drift", [series])
    (mark,) = chart.drawn()[0].marks
    assert mark.across == pytest.approx((chart.across(0.0), chart.across(3.0)))
    assert mark.upright == pytest.approx((chart.down(1.0), chart.down(4.0)))
    assert chart.left <= mark.across[0] < mark.x < mark.across[1] <= chart.right


def test_a_histogram_is_an_outline_of_shares_that_ends_on_the_axis():
    edges = np.linspace(0, 1, 31).tolist()
    values = [0.01, 0.01, 0.5, 0.99, 7.0, -3.0]  # those beyond the ends count at the ends
    series = histogram("loss", values, edges, 2)
    chart = Chart("rows, %", "loss", [series], y_includes=[0.0])
    (drawn,) = chart.drawn()
    assert drawn.area
    assert drawn.faint == []  # more points than a line has that is drawn as it is
    ends = points(drawn.lines[0])
    assert len(ends) == 62 > MANY_POINTS
    share = 100 / len(values)
    heights = {round((chart.down(0) - y) / (chart.down(0) - chart.down(share))) for _, y in ends}
    assert heights == {0, 1, 2, 3}
    assert ends[0][1] == ends[-1][1] == pytest.approx(chart.down(0), abs=0.1)
    assert sum(series.y[1:-1:2]) == pytest.approx(100)
