"""What a report says of models: which is best, what changed, what is worse."""

import pytest

from ortho_core.evaluation.metrics import Estimate
from rayjobs.reports.models import changed, comparison, findings, leaders, marks, places, trade_off, worse
from tests.rayjobs.reports.reported import MODELS, estimates

LABELS = {"base": "base model", "direct": "direct SFT", "cycle_01": "cycle 1", "cycle_02": "cycle 2"}
METRICS = {name: estimates(values) for name, values in MODELS.items()}


def figure(low, value, high):
    return Estimate(value, low, high, 10)


def test_the_best_is_marked_only_where_its_interval_is_beyond_the_next():
    assert marks(METRICS, "latent_mse", "base") == {"cycle_02": "best"}
    assert marks(METRICS, "kid", "base") == {"direct": "best"}
    assert marks(METRICS, "drift", "base") == {"cycle_01": "tied", "cycle_02": "tied"}
    assert marks(METRICS, "reward_clip", "base") == dict.fromkeys(["direct", "cycle_01", "cycle_02"], "tied")
    assert marks(METRICS, "psnr", "base") == {"cycle_02": "tied", "cycle_01": "tied"}  # higher is better
    assert marks(METRICS, "diversity", "base") == {}  # neither is better
    assert (
        marks({name: METRICS[name] for name in ("base", "cycle_01")}, "kid", "base") == {}
    )  # nothing to be better than


def test_the_table_has_a_row_per_metric_and_a_column_per_model():
    table = comparison(METRICS, "base", LABELS)
    rows = {row[0].text: row for row in table.rows if not isinstance(row, str)}
    assert list(table.header) == ["", *LABELS.values(), "n"]
    assert list(rows) == ["KID ↓", "sharpness", "diversity", "CLIP score ↑", "latent MSE ↓", "PSNR dB ↑", "drift ↓"]
    assert str(table.rows[0]).startswith("At plain noise")
    assert "tied: the interval overlaps" in table.caption
    assert (
        "tied"
        not in comparison({m: METRICS[m] for m in ("base", "direct")}, "base", {"base": "a", "direct": "b"}).caption
    )
    base, direct = rows["drift ↓"][1:3]
    assert (base, direct.text, direct.detail) == ("–", "0.1360", "[0.1292, 0.1428]")
    assert rows["KID ↓"][2].mark == "best"
    assert rows["KID ↓"][-1] == "24"
    assert "latent MSE" in dict(table.legend)


@pytest.mark.parametrize(
    ("low", "value", "high", "decimals"),
    [(0.33, 0.39, 0.45, 2), (0.0184, 0.0204, 0.0225, 4), (16.7, 17.3, 17.8, 1), (50, 80, 150, 0), (1.0, 1.0, 1.0, 3)],
)
def test_as_many_decimals_as_the_interval_is_worth(low, value, high, decimals):
    assert places([figure(low, value, high)]) == decimals


def test_a_difference_within_the_intervals_is_not_called_a_change():
    assert changed(figure(0.35, 0.39, 0.43), figure(0.12, 0.13, 0.14)) == "fell from 0.390 to 0.130"
    assert changed(figure(0.12, 0.13, 0.14), figure(0.35, 0.39, 0.43)) == "rose from 0.130 to 0.390"
    assert "interval overlaps" in changed(figure(0.3, 0.4, 0.5), figure(0.25, 0.35, 0.45))


def test_the_findings_say_what_is_better_and_what_is_worse():
    said = findings(METRICS, "base", "cycle_02", LABELS, "After 2 cycles", ["direct"])
    assert said == [
        "After 2 cycles, the images that a user of the model gets are nearer to the held-out images than the base model's.",
        "KID, the distance of the set of these images from the set of targets, fell from 0.0530 to 0.0257; direct SFT "
        "reached 0.0200.",
        "Diversity, the mean distance between images of one prompt, rose from 0.125 to 0.168; direct SFT has 0.0180.",
        "Sharpness, which is 1 if samples are as sharp as the targets, is 0.900, and its interval overlaps that of the base "
        "model's 0.930; direct SFT has 0.410.",
        "At noise searched for each held-out image, the latent MSE of the closest image fell from 0.390 to 0.130; direct SFT "
        "reached 0.236.",
        "Drift from the base model, at plain noise, is 0.0800, against 0.136 of direct SFT.",
        "The fine-tuned model is worse than direct SFT, with intervals that do not overlap, in KID.",
    ]
    harmed = {**METRICS, "cycle_02": estimates({**MODELS["cycle_02"], "latent_mse": 0.6})}
    said = findings(harmed, "base", "cycle_02", LABELS, "After 2 cycles")
    assert "rose from 0.390 to 0.600" in said[4]
    assert (
        said[-1] == "The fine-tuned model is worse than base model, with intervals that do not overlap, in latent MSE."
    )


def test_the_distance_to_the_base_is_no_reason_to_call_a_model_worse():
    metrics = {"a": estimates({"kid_base": 0.001}), "b": estimates({"kid_base": 0.5})}
    assert worse(metrics, "b", "a") == []


def test_of_several_models_the_leaders_are_named():
    said = leaders(METRICS, "base", LABELS)
    assert said[:4] == [
        "Nearest to the held-out images at plain noise (KID): direct SFT (0.0200); base model has 0.0530.",
        "Diversity, the mean distance between images of one prompt, is 0.125 for base model, 0.018 for direct SFT, 0.155 for "
        "cycle 1 and 0.168 for cycle 2.",
        "Closest to single held-out images at noise searched for each (latent MSE): cycle 2 (0.130); base model has 0.390.",
        "Least changed from the base model at plain noise (drift): cycle 1 (0.0780) and cycle 2 (0.0800), tied: their "
        "intervals overlap.",
    ]


def test_a_base_that_is_better_than_all_leaders_is_told():
    harmed = {name: estimates({**MODELS[name], "latent_mse": 0.6 if name != "base" else 0.39}) for name in MODELS}
    assert leaders(harmed, "base", LABELS)[2].endswith("; base model has 0.390, which is lower.")


def test_a_metric_is_drawn_against_drift_with_the_base_at_none():
    chart = trade_off(METRICS, "base", LABELS, "latent_mse")
    assert [list(series.x) for series in chart.series] == [[0.0], [0.136], [0.078], [0.08]]
    assert chart.series[0].colour == 0
    assert trade_off(METRICS, "base", {"base": "base model"}, "latent_mse") is None
