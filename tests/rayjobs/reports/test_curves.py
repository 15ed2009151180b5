"""What is drawn of a training log and of a search."""

import json

from rayjobs.reports.curves import TrainingLog, loss_chart, reward_charts, training_charts


def written(file, *entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def train(update, **terms):
    return {"update": update, "group": "train", "grad_norm": 1.0, "lr": 1e-4, **terms}


def test_each_term_with_values_has_a_chart_and_each_log_a_line(tmp_path):
    first = written(
        tmp_path / "a",
        train(1, loss=0.5, latent=0.4, pixel=0.0),
        train(2, loss=float("nan"), latent=0.3, pixel=0.0),
        {"update": 2, "group": "validation", "latent": 0.6, "drift": 0.0},
    )
    second = written(tmp_path / "b", train(1, loss=0.2, latent=0.2, pixel=0.0))
    loss, latent, held_out = training_charts([TrainingLog(first, "one"), TrainingLog(second, "two", shift=2)])
    assert (loss.title, latent.title, held_out.title) == ("training loss", "latent loss", "held-out latent MSE")
    assert [(list(line.x), list(line.y)) for line in latent.series] == [([1, 2], [0.4, 0.3]), ([3], [0.2])]
    assert held_out.series[0].label == "one"
    assert loss.log_y


def test_a_loss_below_zero_has_a_linear_axis(tmp_path):
    log = written(tmp_path / "a", train(1, loss=0.5, discriminator=1.0), train(2, loss=-0.1, discriminator=2.0))
    assert [chart.log_y for chart in training_charts([TrainingLog(log)])] == [False, True]


def test_a_run_without_a_log_has_no_chart(tmp_path):
    assert training_charts([TrainingLog(tmp_path / "none")]) == []


def test_a_search_has_its_terms_in_one_chart_and_its_rewards_in_one_each():
    assert [s.label for s in loss_chart({"total": [2.0, 1.0], "pixel": [0.0, 0.0]}).series] == ["total"]
    clip, other = reward_charts({"clip": [0.1, 0.3, 0.2], "other": [1.0, 2.0, 3.0]})
    assert clip.title == "clip"
    assert list(clip.series[1].y) == [0.1, 0.3, 0.3]
    assert list(other.series[0].x) == [1, 2, 3]
