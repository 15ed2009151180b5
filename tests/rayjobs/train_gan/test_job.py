"""`ortho train-gan` on a real Ray, small, and the other jobs on what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignJob, AssignSettings
from rayjobs.em import job as em
from rayjobs.em.config import EmJob
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.generate import job as generate
from rayjobs.generate.config import GenerateJob
from rayjobs.train import job as train
from rayjobs.train.config import TrainJob, TrainSettings
from rayjobs.train.models import TrainModels
from rayjobs.train_gan.config import TrainGanJob
from rayjobs.train_gan.job import describe, run
from rayjobs.training.run_files import load_state, states
from tests.ortho_core.pairs.labelled.class_sets import (
    colour,
    labels_of,
    write_class_json,
    write_folders,
    write_idx,
    write_labelled_parquet,
)

#: Small enough for seconds; in this process.
SETTINGS = {
    "data": "mnist",
    "noise_shape": (4, 8, 8),
    "widths": (8, 8, 8),
    "nearest_of": 8,
    "group_size": 4,
    "batch_size": 16,
    "epochs": 2,
    "log_every": 1,
    "num_workers": 0,
    "cpus_per_worker": 0.5,
    "tensorboard": False,
}
ROWS = 160


def bars(n, labels, seed):
    """28×28 pictures of as many bars as the label says, anywhere from top to bottom."""
    draw, images = np.random.default_rng(seed), np.zeros((n, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        shift = draw.integers(0, 8)
        for bar in range(label + 1):
            image[(shift + 2 * bar) % 28, 4:24] = 255
    return images


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A set in MNIST's files, sixteen images of each class and half as many to test."""
    folder = tmp_path_factory.mktemp("mnist")
    for split, n in (("train", ROWS), ("t10k", ROWS // 2)):
        labels = np.arange(n) % 10
        write_idx(folder, split, bars(n, labels, n), labels, zipped=split == "t10k")
    return folder


def job(root, out, **options) -> TrainGanJob:
    return TrainGanJob(**{**SETTINGS, "root": root, "out": out, **options})


@pytest.fixture(scope="module")
def made(mnist, tmp_path_factory, ray_session):
    out = tmp_path_factory.mktemp("made") / "out"
    assert run(job(mnist, out)) == 0
    return out


def history(out):
    return [json.loads(line) for line in (out / "train_history.jsonl").read_text().splitlines()]


def summary(out):
    return json.loads((out / "train_summary.json").read_text())


def test_the_output_is_complete_and_the_folder_is_a_generator(made):
    names = {
        "plan.json",
        "train_history.jsonl",
        "train_history.png",
        "train_summary.json",
        "samples",
        "checkpoint-final",
    }
    assert {p.name for p in made.iterdir()} == names
    said = summary(made)
    # Of each class's 16 images 4 groups, so 10 updates of 4 groups an epoch.
    assert (said["rows"], said["updates"], len(said["epochs"]), said["bad_rows"]) == (ROWS, 20, 2, [])
    lines = [line for line in history(made) if line["group"] == "train"]
    assert [line["update"] for line in lines] == list(range(1, 21))
    for number, epoch in enumerate(said["epochs"]):
        assert epoch["loss"] == pytest.approx(
            np.mean([x["loss"] for x in lines[10 * number : 10 * number + 10]]), rel=1e-6
        )
    assert said["epochs"][1]["loss"] < said["epochs"][0]["loss"]
    assert list(said["diversity"]["by_class"]) == list("0123456789")
    for number in (1, 2):
        with Image.open(made / "samples" / f"epoch-{number:03d}.png") as picture:
            assert picture.size[0] > picture.size[1] / 2 > 100
    generator = load_generator(ModelFolder.open(made / "checkpoint-final"))
    assert generator.config.classes == tuple("0123456789")
    assert not generator.network.training
    assert "class-conditional" in (made / "checkpoint-final" / "README.md").read_text()


def test_a_finished_run_returns_at_once_and_a_changed_one_is_refused(made, mnist):
    before = (made / "train_summary.json").read_bytes()
    assert run(job(mnist, made, num_workers=1, log_every=3)) == 0
    assert (made / "train_summary.json").read_bytes() == before
    with pytest.raises(UserError, match=r"config\.nearest_of was 8, now 9"):
        run(job(mnist, made, nearest_of=9))


def test_a_run_that_stops_in_the_midst_goes_on_to_the_same_weights(made, mnist, tmp_path, monkeypatch):
    from ortho_core.generators.fitting.fit import NearestFit

    update, calls = NearestFit.update, []

    def fails_once(self, batch):
        calls.append(batch)
        if len(calls) == 14:
            raise UserError("the power went")
        return update(self, batch)

    monkeypatch.setattr(NearestFit, "update", fails_once)
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match="the power went"):
        run(job(mnist, out, checkpoint_every=6))
    assert load_state(states(out)[0])["update"] == 12
    assert run(job(mnist, out, checkpoint_every=6)) == 0
    assert len(calls) == 14 + 8
    assert history(out) == history(made)
    assert summary(out)["epochs"] == summary(made)["epochs"]
    weights = [
        load_generator(ModelFolder.open(folder / "checkpoint-final")).network.state_dict() for folder in (out, made)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_two_workers_make_the_same_updates_as_one(made, mnist, tmp_path):
    out = tmp_path / "out"
    assert run(job(mnist, out, num_workers=2)) == 0
    ours, theirs = history(out), history(made)
    assert [x["update"] for x in ours] == [x["update"] for x in theirs]
    for line, other in zip(ours[:5], theirs[:5], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_the_same_command(made, mnist, tmp_path):
    out = tmp_path / "out"
    options = {**SETTINGS, "root": mnist, "out": out, "num_workers": 1, "checkpoint_every": 2}
    options |= {"noise_shape": "4,8,8", "widths": "8,8,8"}
    argv = [sys.executable, "-m", "rayjobs.train_gan", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]
    driver = subprocess.Popen(argv, env={**os.environ, "PYTHONWARNINGS": "ignore"}, start_new_session=True)
    deadline = time.monotonic() + 240
    while not states(out) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert run(job(mnist, out, num_workers=1, checkpoint_every=2)) == 0
    assert [x["update"] for x in history(out)] == [x["update"] for x in history(made)]
    weights = [
        load_generator(ModelFolder.open(folder / "checkpoint-final")).network.state_dict() for folder in (out, made)
    ]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-4, atol=1e-5)


def test_a_gan_on_flat_noise_trains_and_is_told_when_it_ignores_its_noise(mnist, tmp_path, capsys):
    out = tmp_path / "out"
    # A step so small that it stays as it began, which is next to deaf.
    assert run(job(mnist, out, objective="gan", nearest_of=None, noise_shape=(8,), epochs=1, lr=1e-6)) == 0
    assert {"loss", "discriminator"} < set(history(out)[0])
    said = summary(out)["diversity"]
    assert said["of_the_data's"] < 0.2
    assert said["ignores_noise_in"] == list("0123456789")
    assert "IGNORES ITS NOISE in 10 of 10 classes" in capsys.readouterr().err
    assert load_generator(ModelFolder.open(out / "checkpoint-final")).latent_shape == (8, 1, 1)


@pytest.mark.parametrize("kind", ["folders", "parquet", "pairs"])
def test_any_set_has_the_classes_that_its_prompts_are(kind, tmp_path, monkeypatch):
    images, labels, names = colour(24, 12), labels_of(24, 3), ["cat", "owl", "ant"]
    if kind == "folders":
        write_folders(tmp_path / "set", images, labels, names)
    elif kind == "parquet":
        write_labelled_parquet(tmp_path / "set" / "train-0.parquet", images, labels, names)
        write_labelled_parquet(tmp_path / "set" / "test-0.parquet", images[:2], labels[:2], names)
    else:
        write_folders(tmp_path / "set", images, labels, names)
        files = sorted((tmp_path / "set").rglob("*.png"))
        lines = [json.dumps({"prompt": f.parent.name, "image": f"{f.parent.name}/{f.name}"}) for f in files]
        (tmp_path / "set" / "pairs.jsonl").write_text("\n".join(lines))
    said = describe(job(tmp_path / "set", tmp_path / "out", data="any", noise_shape=(4, 3, 3)))
    assert said["generator"]["classes"] == ["ant", "cat", "owl"]
    assert said["generator"]["image_shape"] == [3, 12, 12]
    assert (said["rows"], said["updates"]) == (24, 2)
    assert said["generator_evaluations"] == 2 * 4 * (8 + 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"root": "nowhere"},
            r"--root: no pair set at nowhere.*; MNIST comes as four IDX files .* from its authors' page",
        ),
        ({"root": "nowhere", "data": "cifar10"}, "CIFAR-10 comes as binary batches"),
        ({"batch_size": 18}, "--batch-size: 18 does not divide among 1 workers in groups of 4 images"),
        ({"batch_size": 16, "num_workers": 3}, "--batch-size: 16 does not divide among 3 workers"),
        ({"batch_size": 400}, "has 40 groups of 4 images of one class, and an update needs 100"),
        ({"noise_shape": (4, 8)}, "--noise-shape: 4,8 is not accepted: C,H,W, or one number"),
        ({"noise_shape": (4, 4, 4)}, "a noise map of 4×4 grows to 16×16 pixels"),
        ({"widths": (12, 8)}, "widths must be multiples of 8"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(mnist, tmp_path, options, says):
    with pytest.raises(UserError, match=says) as raised:
        run(job(**{"root": mnist, "out": tmp_path / "out", **options}))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_set_with_other_classes_is_refused(tmp_path):
    write_class_json(tmp_path, 12, np.zeros((7, 28, 28), np.uint8))
    with pytest.raises(UserError, match=r"prompt '12' is no class; accepted: 0, 1, 2.*, or a number from 0 to 9"):
        describe(job(tmp_path, tmp_path / "out"))


def test_the_test_split_is_trained_on_when_asked_for(mnist, tmp_path):
    assert describe(job(mnist, tmp_path / "out", test_split=True))["rows"] == ROWS // 2


def test_every_job_runs_on_the_generator_and_the_set(made, mnist, tmp_path):
    """Assign and both kinds of training by EM, whose baseline is the direct one; then a picture."""
    model, work = made / "checkpoint-final", tmp_path / "em"
    settings = {
        "assign": AssignSettings(steps=2, rows_per_shard=40, cpus_per_worker=0.5),
        "train": TrainSettings(
            epochs=1, batch_size=16, cpus_per_worker=0.5, num_workers=0, save_every=0, tensorboard=False
        ),
        "evaluate": EvaluateSettings(rows=16, steps=2, cpus_per_worker=0.5),
    }
    options = {"cycles": 1, "baseline": True, "validate_on_heldout": True, **settings}
    assert em.run(EmJob(pairs=mnist / "test", heldout=mnist, model=model, work_dir=work, **options)) == 0
    said = json.loads((work / "em_summary.json").read_text())
    assert list(said["evaluation"]) == ["base", "direct", "cycle_01"]
    e_step, m_step = said["cycles"][0]["assign"], said["cycles"][0]["train"]
    assert (e_step["assigned"], e_step["quarantined"]) == (ROWS // 2, 0)
    assert e_step["mean_loss"] < e_step["mean_initial_loss"]
    assert m_step["validations"][0]["drift"] == pytest.approx(0, abs=1e-9)
    tuned = load_generator(ModelFolder.open(work / "cycle_01" / "train" / "checkpoint-final"))
    assert tuned.config == load_generator(ModelFolder.open(model)).config
    assert generate.run(GenerateJob(model=model, prompt="3", out=tmp_path / "pictures", count=2)) == 0
    with Image.open(tmp_path / "pictures" / "0001.png") as picture:
        assert picture.size == (28, 28)


def test_a_generator_is_held_at_the_classes_that_no_row_has(made, tmp_path):
    labels = np.arange(24) % 3 + 4
    options = {"model": made / "checkpoint-final", "noise": "random", "out": tmp_path / "t", "batch_size": 8}

    def held(labels):
        folder = tmp_path / f"{len(labels)}"
        write_folders(folder, bars(len(labels), labels, 1), labels, list("0123456789"))
        given = TrainJob(pairs=str(folder), **options)
        data = train.make_plan(given, TrainModels.open(given))[1]
        return data.preserve_rows, data.preserve_prompts, "no preserve terms" in train.held_line(given, data)

    assert held(labels) == (2, tuple("0123789"), False)
    assert held(np.arange(20) % 10) == (0, (), True)


@pytest.mark.slow
def test_flat_noise_is_assigned_with_patch_size_1_and_adapters_are_refused(mnist, tmp_path):
    out = tmp_path / "gan"
    assert run(job(mnist, out, noise_shape=(8,), epochs=1)) == 0
    model = out / "checkpoint-final"
    common = {"pairs": mnist / "test", "model": model, "steps": 2, "cpus_per_worker": 0.5, "rows_per_shard": 80}
    with pytest.raises(UserError, match="patch_size 2 does not divide the latent 8×1×1"):
        assign.run(AssignJob(**common, out=tmp_path / "a"))
    assert assign.run(AssignJob(**common, out=tmp_path / "a", patch_size=1)) == 0
    options = {"assignments": tmp_path / "a", "model": model, "cpus_per_worker": 0.5, "batch_size": 16}
    with pytest.raises(UserError, match=r"--lora-rank: .* is class-conditional, which has no adapters"):
        train.run(TrainJob(**options, out=tmp_path / "t", lora_rank=2))
    pixel = {"pixel_l1_weight": 0.5, "num_workers": 0, "epochs": 1, "save_every": 0, "tensorboard": False}
    assert train.run(TrainJob(**options, **pixel, out=tmp_path / "t")) == 0
    assert load_generator(ModelFolder.open(tmp_path / "t" / "checkpoint-final")).latent_shape == (8, 1, 1)
