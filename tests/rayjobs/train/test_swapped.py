"""Models, and assignments to validate on, that are others by the time a training worker loads them."""

import shutil

import pytest

from ortho_core.errors import RunFailed
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run as assign
from rayjobs.train.job import run
from tests.rayjobs.swapped import UNET, swap_before, swap_weights
from tests.rayjobs.train.training import job, other_model, summary

pytestmark = pytest.mark.usefixtures("ray_session")
LAUNCH = "rayjobs.training.launch.train"


@pytest.mark.parametrize("which", ["model", "preserve_model"])
def test_a_model_that_is_swapped_after_planning_ends_the_run(which, assigned, tiny_turbo, tmp_path, monkeypatch):
    models = {
        "model": shutil.copytree(tiny_turbo, tmp_path / "model"),
        "preserve_model": other_model(tiny_turbo, tmp_path / "held"),
    }
    swap_before(monkeypatch, LAUNCH, lambda: swap_weights(models[which] / UNET))
    with pytest.raises(RunFailed, match=rf"{models[which] / UNET} has changed since the run was planned; put back"):
        run(job(assigned, tiny_turbo, tmp_path / "out", **models))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_rows_to_validate_on_are_those_that_were_planned_with(assigned, tiny_turbo, tmp_path, monkeypatch):
    held = shutil.copytree(assigned[1], tmp_path / "held")
    other = tmp_path / "other"
    assert assign(AssignJob(pairs=assigned[0], model=tiny_turbo, out=other, steps=1, slots=8, workers=0)) == 0

    def swap():
        shutil.rmtree(held)
        other.rename(held)

    swap_before(monkeypatch, LAUNCH, swap)
    with pytest.raises(RunFailed, match=rf"what --validation {held} holds has changed since the run was planned"):
        run(job(assigned, tiny_turbo, tmp_path / "out", validation=str(held)))


def test_the_summary_says_what_the_model_was_loaded_from(assigned, tiny_turbo, tmp_path):
    assert run(job(assigned, tiny_turbo, tmp_path / "out", epochs=1)) == 0
    assert summary(tmp_path / "out")["loaded_fingerprint"] == ModelFolder.open(tiny_turbo).fingerprint
