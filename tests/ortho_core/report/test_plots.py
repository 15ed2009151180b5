import numpy as np
import pytest
from PIL import Image

from ortho_core.report.charts import MANY_POINTS, Chart, Series
from ortho_core.report.plots import PANELS_PER_ROW, draw_charts


def picture(tmp_path, *charts):
    draw_charts(charts, tmp_path / "charts.png")
    with Image.open(tmp_path / "charts.png") as opened:
        return np.asarray(opened.convert("RGB"))


def loss(*values, **options):
    return Chart("loss", "update", [Series("a", range(len(values)), list(values), **options)], log_y=True)


def test_charts_stand_side_by_side_and_then_in_rows(tmp_path):
    one = picture(tmp_path, loss(1.0, 0.5))
    assert picture(tmp_path, loss(1.0, 0.5), loss(2.0, 3.0)).shape == (one.shape[0], 2 * one.shape[1], 3)
    many = picture(tmp_path, *[loss(1.0, 0.5)] * (PANELS_PER_ROW + 1))
    assert many.shape == (2 * one.shape[0], PANELS_PER_ROW * one.shape[1], 3)


@pytest.mark.parametrize("values", [[1.0, float("nan"), 0.5], [0.0, 0.4, 0.5], [0.3]])
def test_values_that_no_logarithm_has_are_left_out(tmp_path, values):
    assert (picture(tmp_path, loss(*values, points=True)) < 128).any()


def test_a_line_of_many_points_is_faint_behind_its_running_mean(tmp_path):
    values = np.random.default_rng(0).uniform(1, 2, MANY_POINTS + 1).tolist()

    def dark(pixels):
        blue, red = pixels[..., 2].astype(int), pixels[..., 0].astype(int)
        return int(((blue - red > 100) & (red < 90)).sum())

    assert 0 < dark(picture(tmp_path, loss(*values))) < dark(picture(tmp_path, loss(*values[:-1])))


def test_points_have_their_intervals_and_names(tmp_path):
    bare = Series("a", [1.0, 2.0], [2.0, 3.0], points=True, line=False)
    full = Series(
        "a", [1.0, 2.0], [2.0, 3.0], points=True, line=False, x_interval=[(0.5, 1.5), (1.5, 2.5)], names=["x", "y"]
    )
    drawn = [(picture(tmp_path, Chart("fit", "drift", [series])) < 128).sum() for series in (bare, full)]
    assert drawn[1] > drawn[0]


def test_without_a_chart_there_is_no_picture(tmp_path):
    draw_charts([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
