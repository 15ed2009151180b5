"""The dry run of `ortho reward` for a card that is not there."""

from dataclasses import replace

import pytest
import torch
import yaml

from ortho_core.evaluation.features import TINY_CLIP
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.memory.plan import CONTEXT_BYTES, GIB, MOST_SLOTS, usable_bytes
from ortho_core.rewards.clip import ClipTower
from rayjobs.cli import main
from rayjobs.pool.memory import described
from rayjobs.reward.config import RewardJob
from rayjobs.reward.job import check, make_plan
from rayjobs.reward.memory import models_of, searched
from rayjobs.reward.worker import objective_of, rewards_of, search_of


@pytest.fixture(autouse=True, scope="module")
def counted_here(tmp_path_factory):
    """Nothing that was counted by other code is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(f"a red handwritten {n}" for n in range(100)))
    return tmp_path / "p.txt"


def options(tiny_turbo, tmp_path):
    return {"model": tiny_turbo, "reward": "clip", "reward_folders": {"clip": TINY_CLIP}, "out": str(tmp_path / "out")}


def dry_run(options, capsys, **others):
    given = {**options, "reward_folders": f"clip={TINY_CLIP}", **others}
    argv = [each for name, value in given.items() for each in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["reward", *argv, "--dry-run"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_file_of_prompts_is_planned_as_its_worker_will(tiny_turbo, generator, prompts, tmp_path, capsys):
    usual, gib = options(tiny_turbo, tmp_path), 0.9
    said = dry_run(usual, capsys, prompts=prompts, gpu_memory=gib)
    assert "seconds_per_evaluation" not in said
    job, model = RewardJob(**usual, prompts=str(prompts)), ModelFolder.open(tiny_turbo)
    plan, rows, _ = make_plan(job, model)
    there = search_of(job, model, plan, rows).searched(job, objective_of(job, generator), "cpu")
    beside = sum(p.nbytes for p in ClipTower.load(TINY_CLIP, "clip", "").model.parameters())
    (of_rewards,) = models_of(rewards_of(job, "cpu")[1])
    assert sum(p.nbytes for p in of_rewards.parameters()) == beside
    buffers = sum(b.nbytes for b in of_rewards.buffers())
    expected = described(replace(there, judges=beside + buffers), None, gib, {})
    assert said["memory"] == expected
    assert 1 < expected["slots"] < MOST_SLOTS
    assert not (tmp_path / "out").exists()


def test_one_prompt_takes_one_slot(tiny_turbo, tmp_path, capsys):
    usual = options(tiny_turbo, tmp_path)
    memory = dry_run(usual, capsys, prompt="a red two", gpu_memory=24)["memory"]
    assert (memory["slots"], memory["fits"]) == (1, True)
    assert "memory" not in dry_run(usual, capsys, prompt="a red two")


@pytest.mark.slow
def test_where_it_does_not_fit_it_says_what_does(tiny_turbo, tmp_path, capsys):
    usual, model = options(tiny_turbo, tmp_path) | {"gradient_checkpointing": True}, ModelFolder.open(tiny_turbo)
    peaks = {}
    for dtype in ("auto", "float16"):
        job = RewardJob(**usual, prompt="a red two", gpu_memory=1.0, dtype=dtype)
        peaks[dtype] = searched(job, model, check(job, model), 1, 1).plan(usable_bytes(GIB)).peak
    assert peaks["float16"] < peaks["auto"]
    # What lies between the two is left of such a card.
    between = sum(peaks.values()) / 2 / 0.92
    memory = dry_run(usual, capsys, prompt="a red two", gpu_memory=(CONTEXT_BYTES + between) / GIB)["memory"]
    assert not memory["fits"]
    (change,) = memory["to_fit"]
    assert change.startswith("set --dtype float16: memory: ")
    memory = dry_run(usual, capsys, prompt="a red two", gpu_memory=0.7001)["memory"]
    assert memory["to_fit"] == ["use a larger GPU: no option of this verb makes it fit"]


def test_rewards_that_look_through_one_model_have_it_once(tiny_turbo, tmp_path):
    job = RewardJob(**options(tiny_turbo, tmp_path), prompt="a")
    optimised, told = rewards_of(job, "cpu")
    told.rewards["again"] = optimised.rewards["clip"]
    assert len(models_of(told)) == 1
    assert isinstance(models_of(told)[0], torch.nn.Module)
