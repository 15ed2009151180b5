import json

import numpy as np
from PIL import Image

from ortho_core.report.plots import plot_training


def picture(tmp_path, lines, name):
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_training(tmp_path / "history.jsonl", tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        return np.asarray(opened.convert("RGB"))


def train(update, loss):
    terms = {"loss": loss, "latent": loss / 2, "pixel": 0.0, "preserve_latent": 0.0, "preserve_pixel": 0.0}
    return {"update": update, "group": "train", **terms, "grad_norm": 1.0, "lr": 1e-4}


def validation(update, latent, drift):
    return {"update": update, "group": "validation", "latent": latent, "drift": drift}


def test_validation_is_drawn_beside_the_loss_where_there_was_one(tmp_path):
    log = [train(k, 1 / k) for k in range(1, 60)]
    alone = picture(tmp_path, log, "a.png")
    both = picture(tmp_path, [*log, validation(0, 0.5, 0.0), validation(50, 0.4, 0.1)], "b.png")
    assert both.shape == (alone.shape[0], 2 * alone.shape[1], 3)
    for side in np.split(both, 2, axis=1):
        assert (side < 128).any()


def test_values_that_no_logarithm_has_are_left_out(tmp_path):
    lines = [train(1, 1.0), train(2, float("nan")), train(3, 0.5), validation(0, 0.5, 0.0)]
    assert picture(tmp_path, lines, "a.png").size


def test_a_run_without_a_line_has_no_picture(tmp_path):
    (tmp_path / "history.jsonl").write_text("")
    plot_training(tmp_path / "history.jsonl", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
