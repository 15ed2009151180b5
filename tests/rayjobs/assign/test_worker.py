"""A model, or assignments to start from, that are others by the time a worker loads them: no row is recorded as theirs."""

import shutil

import pytest

from ortho_core.errors import RunFailed
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.records.parts import read_footer
from ortho_core.storage.open import open_store
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run
from rayjobs.cli import main
from tests.rayjobs.swapped import UNET, swap_before, swap_weights

SETTINGS = {"steps": 2, "rows_per_shard": 8, "slots": 8, "report": False, "cpus_per_worker": 0.5}


def job(pairs, model, out, **options):
    return AssignJob(**{**SETTINGS, "pairs": pairs, "model": model, "out": out, **options})


@pytest.fixture
def model(tiny_turbo, tmp_path):
    return shutil.copytree(tiny_turbo, tmp_path / "model")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_model_that_is_swapped_after_planning_ends_the_run_in_one_line(
    workers, small_pairs, model, tmp_path, capsys, monkeypatch
):
    swap_before(monkeypatch, "rayjobs.assign.job.work_through", lambda: swap_weights(model / UNET))
    out = tmp_path / "out"
    options = {"pairs": small_pairs, "model": model, "out": out, "steps": 2, "workers": workers, "cpus-per-worker": 0.5}
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["assign", *argv, "--report", "false"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"ortho assign: {model / UNET} has changed since the run was planned; put back what was there"
    )
    assert not list(out.glob("part-*"))


def test_parts_say_what_their_model_was_loaded_from(small_pairs, model, tmp_path):
    assert run(job(small_pairs, model, tmp_path / "out", workers=0)) == 0
    folder = open_store(tmp_path / "out")
    found = {read_footer(folder, name).about.loaded_fingerprint for name in folder.names() if name.startswith("part-")}
    assert found == {ModelFolder.open(model).fingerprint}


def test_a_float16_variant_that_is_swapped_after_planning_is_found(small_pairs, model, tmp_path, monkeypatch):
    half = model / UNET.with_suffix(".fp16.safetensors")
    shutil.copy(model / UNET, half)
    options = {"dtype": "float16", "workers": 0}
    assert run(job(small_pairs, model, tmp_path / "before", **options)) == 0
    swap_before(monkeypatch, "rayjobs.assign.job.work_through", lambda: swap_weights(half))
    with pytest.raises(RunFailed, match=r"fp16\.safetensors has changed since"):
        run(job(small_pairs, model, tmp_path / "out", **options))
    assert not list((tmp_path / "out").glob("part-*"))


def test_a_warm_start_is_from_the_run_that_was_planned_with(small_pairs, model, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for out, steps in ((first, 1), (second, 2)):
        assert run(job(small_pairs, model, out, steps=steps, workers=0)) == 0

    def swap():
        shutil.rmtree(first)
        second.rename(first)

    swap_before(monkeypatch, "rayjobs.assign.job.work_through", swap)
    with pytest.raises(RunFailed, match=rf"^the content of --warm-start {first} has changed since the run was planned"):
        run(job(small_pairs, model, tmp_path / "out", warm_start=first, workers=0))
    assert not list((tmp_path / "out").glob("part-*"))
