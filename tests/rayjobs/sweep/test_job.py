"""Sweeps end to end on a real Ray and a real Ray Tune, small."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ortho_core.errors import UserError
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_store import PromptStore
from ortho_core.records.assignments import Assignments
from rayjobs.sweep.config import SweepAssignSettings, SweepEvaluateSettings, SweepJob, SweepTrainSettings
from rayjobs.sweep.job import describe, run
from rayjobs.sweep.trial import EStep, em_job, folder_of
from rayjobs.sweep.tune import room_for, with_decoders
from tests.chromium import check_in_browser
from tests.conftest import ROOT

ASSIGN = SweepAssignSettings(steps=2, rows_per_shard=12, cpus_per_worker=0.5)
# Held at the prompts of the pairs, where drift is measured.
TRAIN = SweepTrainSettings(epochs=4, batch_size=12, lr=3e-4, cpus_per_worker=0.5, preserve_prompts="training")
EVALUATE = SweepEvaluateSettings(rows=16, steps=2, cpus_per_worker=0.5)
SPACE = {"assign.patch_size": "2,4", "train.preserve_latent_weight": "0,2"}


def job(pairs, model, digits, out, **options):
    settings = {"assign": ASSIGN, "train": TRAIN, "evaluate": EVALUATE, "baseline": False, "sweep": SPACE}
    heldout = digits / "heldout.jsonl"
    return SweepJob(**{**settings, "pairs": pairs, "model": model, "heldout": heldout, "work_dir": out, **options})


def summary(out):
    return json.loads((out / "sweep_summary.json").read_text())


def finished_trials(out):
    """When the record of each finished trial was written, by its folder."""
    files = [file for file in out.glob("trials/*/trial.json") if json.loads(file.read_text())["status"] == "finished"]
    return {file.parent: file.stat().st_mtime_ns for file in files}


def made(out):
    """When each file that a trial leaves was written."""
    files = [f for kind in ("*.parquet", "*.safetensors") for f in out.rglob(kind)]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("patches", [(2,), pytest.param((2, 4), marks=pytest.mark.slow)], ids=["one", "two"])
def test_trials_share_their_e_steps_and_a_preserve_weight_holds_the_drift(
    small_pairs, tiny_turbo, digits, tmp_path, patches
):
    out = tmp_path / "run"
    space = {"assign.patch_size": list(patches), "train.preserve_latent_weight": "0,2"}
    options = {"max_drift": 1.0, "sweep": space, "prompt_embeddings": tmp_path / "embeddings"}
    sweep = job(small_pairs, tiny_turbo, digits, out, **options)
    assert run(sweep) == 0
    # Of all trials and steps, each prompt once.
    (folder,) = (tmp_path / "embeddings").iterdir()
    (entry, *_) = (out / "assignments").iterdir()
    assert len(PromptStore(tmp_path / "embeddings", folder.name)) == len(Assignments(entry).prompts())
    told = summary(out)
    drift = {name: trial["metrics"]["drift"]["value"] for name, trial in told["trials"].items()}
    assert list(drift) == [f"patch_size={p},preserve_latent_weight={w}" for p in patches for w in (0, 2)]
    for p in patches:
        assert drift[f"patch_size={p},preserve_latent_weight=2"] < drift[f"patch_size={p},preserve_latent_weight=0"]
    assert len(list((out / "assignments").iterdir())) == len(patches)
    assert len({trial["assignments"] for trial in told["trials"].values()}) == len(patches)
    fit = {name: trial["metrics"]["latent_mse"]["value"] for name, trial in told["trials"].items()}
    assert told["chosen"] == min(fit, key=fit.get) == told["front"][0]
    assert (Path(told["model"]) / "unet" / "config.json").is_file()
    assert list((out / "tune").glob("*/events.out.tfevents*"))
    # Targets, the base and every trial, twelve columns, at plain noise (the chosen trial at another, too) and closest.
    check_in_browser(out / "report.html", tmp_path / "browser", images=(2 * (2 + len(drift)) + 1) * 12)

    before = made(out)
    (out / "tune").rename(tmp_path / "tune")
    assert run(sweep) == 0
    assert made(out) == before
    assert not (out / "tune").exists()
    with pytest.raises(UserError, match=r"assign\.steps was 2, now 3"):
        run(sweep.model_copy(update={"assign": ASSIGN.model_copy(update={"steps": 3})}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sweep": {}}, "nothing to vary"),
        ({"sweep": {"train.lrr": "1,2"}}, r"did you mean --sweep.train.lr\?"),
        ({"sweep": {"train.lr": "1e-3:1e-3"}}, "the range '1e-3:1e-3' is empty"),
        ({"sweep": {"train.num_workers": "1,2"}}, "changes the speed or the messages of a trial"),
        ({"sweep": {"assign.patch_size": "2,3"}}, "patch_size 3 does not divide"),
        ({"sweep": {"train.batch_size": "12,25"}}, "25 is more than the 24 rows"),
        ({"metric": "latent"}, "'latent' is not a figure of target fit; accepted: latent_mse"),
        ({"metric": "drift"}, "'drift' is not a figure of target fit"),
        ({"metric": "sharpness"}, "'sharpness' is not a figure of target fit"),
        ({"metric": "lpips"}, "needs its weights: --evaluate.lpips"),
        ({"metric": "reward_pickscore"}, "rewards measured here: clip"),
        ({"heldout": None}, "no held-out pairs to judge trials on"),
        ({"heldout": "none"}, "no held-out pairs to judge trials on"),
        ({"heldout": "nowhere"}, "no pair set at nowhere"),
        ({"train": TRAIN.model_copy(update={"num_workers": 0})}, "accepted in a sweep: 1 or more"),
        ({"space": "nowhere.yaml"}, "--space nowhere.yaml: No such file"),
        ({"early_stopping": "asha", "grace_epochs": 4}, "leaves no epoch to end early"),
        ({"early_stopping": "asha", "sweep": {"train.epochs": "1,2"}}, "compares trials after equal epochs"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(small_pairs, tiny_turbo, digits, tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        run(job(small_pairs, tiny_turbo, digits, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_the_plan_tells_trials_and_e_steps(small_pairs, tiny_turbo, digits, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("train: {preserve_latent_weight: [0, 1, 2]}\nassign.patch_size: 2,4\n")
    said = describe(job(small_pairs, tiny_turbo, digits, tmp_path / "run", sweep={}, space=space))
    assert len(said["trials"]) == 6
    assert said["e_steps"] == 2
    assert said["updates_of_one_trial_about"] == 8
    assert said["trials_at_once"] == "as many as the cluster has room for"
    assert "memory_of_the_first_trial" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_plan_for_a_gpu_has_the_memory_of_each_step_of_a_trial(small_pairs, tiny_turbo, digits, tmp_path):
    said = describe(job(small_pairs, tiny_turbo, digits, tmp_path / "run", gpu_memory=24, max_concurrent=2))
    assert said["trials_at_once"] == 2
    memory = said["memory_of_the_first_trial"]
    assert {"assign", "train"} <= memory.keys()
    assert all(memory[step]["fits"] for step in ("assign", "train"))


def test_a_folder_is_named_by_its_values_and_by_nothing_else(small_pairs, tiny_turbo, digits, tmp_path):
    sweep = job(small_pairs, tiny_turbo, digits, tmp_path)
    names = [
        folder_of(sweep, values).name
        for values in ({"train.lr": 1e-4}, {"train.lr": 0.123456789}, {"train.lr": 0.123456788}, {"cycles": 2})
    ]
    assert names[0] == "lr=0.0001"
    assert names[1] != names[2]
    assert all(re.fullmatch(r"[\w.=-]+", name) for name in names)


@pytest.mark.usefixtures("ray_session")
def test_of_trials_that_start_at_once_one_makes_the_e_step(small_pairs, tiny_turbo, digits, tmp_path):
    import ray

    from rayjobs.em import steps as em

    sweep = job(small_pairs, tiny_turbo, digits, tmp_path)
    maker = ray.remote(num_cpus=0, max_concurrency=1)(EStep).remote()
    trials = [em_job(sweep, {"train.preserve_latent_weight": w}, tmp_path / str(w)) for w in (0.0, 1.0)]
    model = ModelFolder.open(tiny_turbo)
    steps = [em.cached(trial, em.assign_job(trial, 1, trial.model), model) for trial in trials]
    assert ray.get([maker.make.remote(step, model) for step in steps]) == [0, 0]
    (entry,) = (tmp_path / "assignments").iterdir()
    assert json.loads((entry / "summary.json").read_text())["rows_this_run"] == 24
    assert all((tmp_path / str(w) / "cycle_01" / "assignments").resolve() == entry for w in (0.0, 1.0))


@pytest.mark.usefixtures("ray_session")
def test_trials_that_fill_the_cluster_leave_no_cpu_that_their_decoders_would_wait_for(
    small_pairs, tiny_turbo, digits, tmp_path
):
    sweep = job(small_pairs, tiny_turbo, digits, tmp_path)
    full = room_for(sweep)
    assert full == 4 / 0.5
    for at_once, cpus in ((1, None), (full, 0.0)):
        given = with_decoders(sweep, at_once)
        assert (given.assign.cpus_per_decoder, given.evaluate.cpus_per_decoder) == (cpus, cpus)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_asha_ends_the_worst_early_and_they_stay_ended(small_pairs, tiny_turbo, digits, tmp_path):
    out = tmp_path / "run"
    rates = {"train.lr": "3e-4,1e-4,1e-6,1e-7"}
    sweep = job(
        small_pairs,
        tiny_turbo,
        digits,
        out,
        sweep=rates,
        early_stopping="asha",
        reduction_factor=2,
        heldout=small_pairs,
    )
    assert run(sweep) == 0
    trials = summary(out)["trials"]
    assert trials["lr=0.0003"]["status"] == "finished"
    assert trials["lr=1e-07"]["status"] == "stopped"
    for trial in trials.values():
        epochs = [entry["epoch"] for entry in trial["curve"]]
        assert epochs == list(range(1, len(epochs) + 1))
        assert (len(epochs) == 4) == (trial["status"] == "finished")
    before = made(out)
    assert run(sweep) == 0
    assert made(out) == before
    # Further values go on from the trials that are there.
    assert run(sweep.model_copy(update={"sweep": {"train.lr": "3e-4,1e-7,1e-8"}})) == 0
    after = made(out)
    assert {file: after[file] for file in before} == before
    assert list(summary(out)["trials"]) == ["lr=0.0003", "lr=1e-07", "lr=1e-08"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_optuna_goes_on_from_the_trials_that_are_there_and_trackers_hear_of_them(
    small_pairs, tiny_turbo, digits, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    out = tmp_path / "run"
    searched = {"train.lr": "log:1e-5:1e-3", "train.preserve_latent_weight": "0,1"}
    options = {"sweep": searched, "search": "optuna", "mlflow": str(tmp_path / "mlflow"), "wandb": "sweeps"}
    assert run(job(small_pairs, tiny_turbo, digits, out, samples=2, **options)) == 0
    first, before = summary(out)["trials"], made(out)
    assert len(first) == 2
    assert run(job(small_pairs, tiny_turbo, digits, out, samples=3, **options)) == 0
    second, after = summary(out)["trials"], made(out)
    assert first.keys() < second.keys()
    assert len(second) == 3
    assert {file: after[file] for file in before} == before
    assert len(list((tmp_path / "mlflow").rglob("metrics/latent_mse"))) == 2 + 3
    assert len(list(tmp_path.rglob("*.wandb"))) == 2 + 3


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_killed_driver_goes_on_and_repeats_no_finished_trial(small_pairs, tiny_turbo, digits, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rayjobs.sweep", "--pairs", small_pairs, "--heldout", digits / "heldout.jsonl"]
    command += ["--model", tiny_turbo, "--work-dir", out, "--baseline", "false", "--max-concurrent", "1"]
    command += ["--assign.steps", "2", "--train.epochs", "2", "--train.batch-size", "12", "--train.lr", "3e-4"]
    command += ["--evaluate.rows", "16", "--evaluate.steps", "2", "--sweep.train.preserve-latent-weight", "0,1,2"]
    command = [str(part) for part in command]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and driver.poll() is None and not finished_trials(out):
        time.sleep(0.2)
    assert driver.poll() is None
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = finished_trials(out)
    assert 0 < len(finished) < 3
    time.sleep(10)  # Ray's processes notice that the driver is gone
    again = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=550)
    assert again.returncode == 0, again.stderr[-2000:]
    assert {folder: (folder / "trial.json").stat().st_mtime_ns for folder in finished} == finished
    assert [trial["status"] for trial in summary(out)["trials"].values()] == ["finished"] * 3
    assert len(list((out / "assignments").iterdir())) == 1
