"""Rewards whose weights are others by the time a worker loads them."""

import json
import shutil

import pytest

from ortho_core.errors import UserError
from ortho_core.evaluation.features import TINY_CLIP
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.pool.worker import OwnProcess
from rayjobs.reward.config import RewardJob
from rayjobs.reward.job import make_plan, run
from rayjobs.reward.worker import search_of
from tests.rayjobs.swapped import swap_before, swap_weights

PROMPT = "a red handwritten two on a white background"
CHANGED = r"^reward clip has changed since the run was planned; put back"


@pytest.fixture
def clip(tmp_path):
    return shutil.copytree(TINY_CLIP, tmp_path / "clip")


def job(model, out, clip, **options):
    return RewardJob(model=model, reward="clip", reward_folders={"clip": clip}, steps=2, out=str(out), **options)


def test_a_worker_ends_that_loads_other_weights(tiny_turbo, clip, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    one, model = job(tiny_turbo, tmp_path / "out", clip, prompts=str(file)), ModelFolder.open(tiny_turbo)
    plan, rows, _ = make_plan(one, model)
    search = search_of(one, model, plan, rows)
    search.load(OwnProcess("cpu", 1), [])
    swap_weights(clip / "model.safetensors")
    with pytest.raises(UserError, match=CHANGED):
        search.load(OwnProcess("cpu", 1), [])
    (clip / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=CHANGED):
        search.load(OwnProcess("cpu", 1), [])


def test_one_prompt_is_scored_by_what_was_planned_with(tiny_turbo, clip, tmp_path, monkeypatch):
    swap_before(monkeypatch, "rayjobs.reward.one_prompt.run_one", lambda: swap_weights(clip / "model.safetensors"))
    with pytest.raises(UserError, match=CHANGED):
        run(job(tiny_turbo, tmp_path / "out", clip, prompt=PROMPT))
