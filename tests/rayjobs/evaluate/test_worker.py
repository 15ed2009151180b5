"""Judges and models that are others by the time a worker loads them."""

import shutil

import pytest

from ortho_core.errors import RunFailed, UserError
from ortho_core.evaluation.features import TINY_CLIP
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.records.parts import read_footer
from ortho_core.storage.open import open_store
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.evaluate.job import make_plan, run
from rayjobs.evaluate.plan import PARTS
from rayjobs.evaluate.worker import Judging
from rayjobs.pool.worker import OwnProcess
from tests.conftest import copy_pairs
from tests.rayjobs.swapped import UNET, swap_before, swap_weights


def copies(**folders):
    return {option: shutil.copytree(TINY_CLIP, folder) for option, folder in folders.items()}


def job(models, pairs, out, **options):
    usual = {"steps": 2, "rows_per_shard": 8, "batch_size": 8, "workers": "0"}
    return EvaluateJob(**{**usual, "model": models, "pairs": str(pairs), "out": out, **options})


@pytest.mark.parametrize(
    ("swapped", "says"),
    [
        ("features", "the model of --features a"),
        ("cmmd_features", "the model of --cmmd-features b"),
        ("clip", "reward clip"),
    ],
)
def test_a_judge_that_is_swapped_after_planning_ends_the_worker(swapped, says, small_pairs, tiny_turbo, tmp_path):
    folders = copies(features=tmp_path / "a", cmmd_features=tmp_path / "b", clip=tmp_path / "c")
    options = {"features": str(folders["features"]), "cmmd_features": str(folders["cmmd_features"]), "rewards": "clip"}
    models = {"base": ModelFolder.open(tiny_turbo)}
    one = job({"base": tiny_turbo}, small_pairs, tmp_path / "out", reward_folders={"clip": folders["clip"]}, **options)
    plan, pairs, _ = make_plan(one, models)
    judging = Judging(one, models, plan, pairs)
    judging.load(OwnProcess("cpu", 1), [])
    swap_weights(folders[swapped] / "model.safetensors")
    with pytest.raises(UserError, match=f"^{says} has changed since the run was planned; put back"):
        judging.load(OwnProcess("cpu", 1), [])


def test_each_model_is_the_one_that_was_planned_with(digits, tiny_turbo, tmp_path, monkeypatch):
    pairs = copy_pairs(digits, tmp_path / "pairs", 8)
    models = {name: shutil.copytree(tiny_turbo, tmp_path / name) for name in ("base", "other")}
    swap_weights(models["other"] / UNET)
    fingerprints = [ModelFolder.open(model).fingerprint for model in models.values()]
    swap_before(monkeypatch, "rayjobs.evaluate.job.work_through", lambda: swap_weights(models["other"] / UNET))
    with pytest.raises(RunFailed, match=rf"^{models['other'] / UNET} has changed since the run was planned"):
        run(job(models, pairs, tmp_path / "out"))
    folder = open_store(tmp_path / "out").child(PARTS)
    parts = [name for name in folder.names() if name.startswith("part-")]
    assert [read_footer(folder, name).about.loaded_fingerprint for name in parts] == fingerprints[:1]
