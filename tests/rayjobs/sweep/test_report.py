"""The report of a sweep, from a folder as `ortho sweep` leaves it, with chosen figures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from rayjobs.sweep.report import write_report
from rayjobs.verb.console import versions
from tests.chromium import check_source
from tests.rayjobs.reports.reported import BASE, DIRECT, figures, make_evaluation

#: Latent MSE, drift.
TRIALS = {"w=0": (0.18, 0.09), "w=1": (0.22, 0.05), "w=2": (0.30, 0.06), "w=4": None, "w=8": None}


def make_sweep(work_dir: Path, finished=True, max_drift=0.07) -> None:
    make_evaluation(work_dir / "references" / "evaluation", {"base": BASE, "direct": DIRECT})
    trials = {}
    for i, (name, both) in enumerate(TRIALS.items()):
        values = {"train.preserve_latent_weight": float(name[2:])}
        curve = [{"epoch": 1.0, "validation_latent": 0.3 + i / 100}]
        if both is None or not finished:
            status = "stopped" if name == "w=4" else "failed"
            error = {} if status == "stopped" else {"error": "a <worker> died"}
            trials[name] = {"status": status, "values": values, "metrics": {}, "curve": curve, **error}
            continue
        mine = BASE | {"latent_mse": both[0], "drift": both[1]}
        folder = work_dir / "trials" / name / "evaluation"
        make_evaluation(folder, {"base": BASE, "trial": mine})
        told = {"assignments": "abc", "evaluations": [200], "updates": 8, "train_seconds": 9.0, "quarantined": 0}
        trials[name] = {"status": "finished", "values": values, "metrics": figures(mine), "curve": curve, **told}
    summary = {
        "fields": {"train.preserve_latent_weight": "w"},
        "metric": "latent_mse",
        "max_drift": max_drift,
        "references": {"base": figures(BASE), "direct": figures(DIRECT)},
        "trials": trials,
        "front": ["w=0", "w=1"] if finished else [],
        "chosen": "w=1" if finished and max_drift else None,
        "model": "runs/sweep/trials/w=1/model" if finished and max_drift else None,
        "seconds_this_run": 100.0,
        "config": {"model": "models/tiny-turbo", "pairs": "examples/digits"},
        "versions": versions(),
    }
    (work_dir / "sweep_summary.json").write_text(json.dumps(summary))


def test_the_front_the_choice_and_what_became_of_the_others_are_told(tmp_path):
    make_sweep(tmp_path)
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "5 settings were tried. 2 of them are on the Pareto front:" in text
    assert "w=0 has latent MSE 0.180 at a drift of 0.090" in text
    assert "The best fit with a drift of 0.07 or less is w=1." in text
    # Direct SFT has .236 at .136: two trials are better in both.
    assert "2 of 3 finished trials are better in both than direct SFT" in text
    assert "0 are worse in both" in text
    assert "1 trial ended early" in text
    assert "a &lt;worker&gt; died" in text
    assert "1 set of assignments for 3 trials, 200 evaluations" in text
    # Targets, base, direct and three trials, twelve of each, at plain noise (the chosen trial at another, too) and closest.
    assert check_source(tmp_path / "report.html") == (7 + 6) * 12
    assert text.index("Samples at plain noise") < text.index("w=1, another noise") < text.index("The closest images")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize("max_drift", [None, 0.01])
def test_without_a_finished_trial_there_is_a_report_all_the_same(tmp_path, max_drift):
    make_sweep(tmp_path, finished=False, max_drift=max_drift)
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "4 trials failed." in text
    assert ("No trial has a drift of 0.01 or less." in text) == (max_drift is not None)
    assert check_source(tmp_path / "report.html") == 0
    assert not (tmp_path / "pareto.png").exists()
