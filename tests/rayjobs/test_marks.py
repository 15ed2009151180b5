"""What the marks on the options say is true of the plans that are made from them."""

import typing
from pathlib import Path

import numpy as np
import pytest

from ortho_core.errors import UserError
from ortho_core.evaluation.features import TINY_CLIP
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import conduct, decides, mark_of, resolved
from ortho_core.storage.location import Place
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignJob
from rayjobs.cli import VERBS
from rayjobs.em import job as em
from rayjobs.em.config import EmJob
from rayjobs.evaluate import job as evaluate
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.generate import job as generate
from rayjobs.generate.config import GenerateJob
from rayjobs.reward import job as reward
from rayjobs.reward.config import RewardJob
from rayjobs.sweep import job as sweep
from rayjobs.sweep.config import SweepJob
from rayjobs.sweep.space import value_of, with_values
from rayjobs.train import job as train
from rayjobs.train.config import TrainJob
from rayjobs.train.models import TrainModels
from rayjobs.train_gan import job as train_gan
from rayjobs.train_gan.config import TrainGanJob
from rayjobs.verb.help import leaves
from tests.ortho_core.pairs.labelled.class_sets import write_idx

#: Values of options that take no other value of their type.
VALUES = {"metric": ["psnr"], "sweep": [{"train.lr": "1e-4,1e-3,1e-2"}], "data": ["fashion-mnist"], "size": ["40x24"]}
#: Options of which the jobs here accept one value alone: others need weights that are not shipped.
SETTLED = {"reward.save_steps", "reward.report_rewards", "train.size"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_has_a_mark(verb):
    model = VERBS[verb].model()
    assert [name for name, field in leaves(model) if mark_of(field) is None] == []


def other_values(name, field, value, tmp_path):
    """Values of the option's type, one of which may be accepted in place of `value`."""
    if name.rpartition(".")[2] in VALUES:
        return VALUES[name.rpartition(".")[2]]
    kinds = {field.annotation, *typing.get_args(field.annotation)}
    if any(isinstance(mark, Place) for mark in field.metadata) or any(
        isinstance(mark, Place) for kind in kinds for mark in getattr(kind, "__metadata__", ())
    ):
        return [str(tmp_path / "space.yaml")]
    if bool in kinds:
        return [not value]
    numbers = [value + 1, 2 * value, 4 * value] if isinstance(value, int | float) and value else []
    if typing.get_origin(field.annotation) is typing.Literal:
        candidates = list(typing.get_args(field.annotation))
    elif isinstance(value, list):
        candidates = [value[1:], [2 * each for each in value]]
    elif int in kinds:
        candidates = [*numbers, 1, 2, 4, 8, 16]
    elif float in kinds:
        candidates = [*numbers, 0.25]
    else:
        candidates = ["2", "3", "clip", {"a": "b"}]
    return [candidate for candidate in candidates if candidate != value]


def check_marks(verb, jobs, fingerprint, tmp_path):
    """Changes each option of the first of `jobs` with which another value is accepted, and looks at the plan."""
    plans = [fingerprint(job) for job in jobs]
    (tmp_path / "space.yaml").write_text("train.lr: 1e-4,1e-5\n")
    wrong = []
    for name, field in leaves(type(jobs[0])):
        if mark_of(field) is resolved or f"{verb}.{name}" in SETTLED:
            continue
        changed = None
        for job, before in zip(jobs, plans, strict=True):
            for value in other_values(name, field, value_of(job, name), tmp_path):
                try:
                    changed = fingerprint(with_values(job, {name: value})) != before
                    break
                except UserError as error:
                    refusal = str(error)
            if changed is not None:
                break
        if changed is None:
            wrong.append(f"{name}: {refusal}")
        elif changed != (mark_of(field) is decides):
            wrong.append(f"{name} is marked {mark_of(field).name}")
    assert wrong == []


def of_model(make_plan):
    """The fingerprint of a job's plan, which is made from the job and its opened model."""
    return lambda job: make_plan(job, ModelFolder.open(job.model))[0].run_fingerprint


def of_evaluation(job):
    return evaluate.make_plan(job, evaluate.open_models(job))[0].run_fingerprint


def test_assign(small_pairs, tiny_turbo, tmp_path):
    job = AssignJob(pairs=small_pairs, model=tiny_turbo, out=tmp_path / "out")
    check_marks("assign", [job], of_model(assign.make_plan), tmp_path)


def reward_job(tiny_turbo, tmp_path, **options):
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\n")
    folders = {"clip": TINY_CLIP}
    usual = {"prompts": tmp_path / "prompts.txt", "model": tiny_turbo, "reward": "clip:1", "reward_folders": folders}
    return RewardJob(**{**usual, "out": tmp_path / "out", **options})


def test_reward(tiny_turbo, tmp_path):
    check_marks("reward", [reward_job(tiny_turbo, tmp_path, patch_size=2)], of_model(reward.make_plan), tmp_path)


def test_evaluate(small_pairs, tiny_turbo, tmp_path):
    job = EvaluateJob(pairs=small_pairs, model={"base": tiny_turbo}, out=tmp_path / "out")
    check_marks("evaluate", [job], of_evaluation, tmp_path)


def test_generate(tiny_turbo, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"tag": "colors", "prompt": "a red cat"}\n')
    usual = {"model": tiny_turbo, "out": tmp_path / "out"}
    jobs = [GenerateJob(**usual, prompt="a red cat"), GenerateJob(**usual, prompts=tmp_path / "prompts.jsonl")]
    check_marks("generate", jobs, of_model(generate.make_plan), tmp_path)


def test_train(assigned, tiny_turbo, tmp_path):
    usual = {"assignments": assigned[1], "model": tiny_turbo, "out": tmp_path / "out", "batch_size": 8}
    jobs = [TrainJob(**usual), TrainJob(**usual, lora_rank=2)]  # all weights are not quantised
    check_marks("train", jobs, lambda job: train.make_plan(job, TrainModels.open(job))[0].run_fingerprint, tmp_path)


def test_train_gan(tmp_path):
    labels = np.arange(160) % 10
    images = np.random.default_rng(0).integers(0, 256, (160, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        write_idx(tmp_path / "mnist", split, images, labels)
    small = {"widths": (8, 8, 8), "group_size": 4, "batch_size": 16}
    job = TrainGanJob(data="mnist", root=tmp_path / "mnist", out=tmp_path / "out", **small)
    check_marks("train-gan", [job], lambda job: train_gan.make_plan(job)[0].run_fingerprint, tmp_path)


def em_options(small_pairs, tiny_turbo, digits, tmp_path):
    places = {"pairs": small_pairs, "model": tiny_turbo, "work_dir": tmp_path / "out"}
    return {**places, "heldout": digits / "heldout.jsonl", "train": {"batch_size": 8}, "evaluate": {"rows": 16}}


def test_em(small_pairs, tiny_turbo, digits, tmp_path):
    usual = em_options(small_pairs, tiny_turbo, digits, tmp_path)
    adapted = usual | {"train": usual["train"] | {"lora_rank": 2}}
    check_marks("em", [EmJob(**usual), EmJob(**adapted)], of_model(em.make_plan), tmp_path)


def test_sweep(small_pairs, tiny_turbo, digits, tmp_path):
    options = em_options(small_pairs, tiny_turbo, digits, tmp_path) | {"sweep": {"train.lr": "1e-4,1e-3"}}
    jobs = [SweepJob(**options, early_stopping=which) for which in ("asha", "none")]
    jobs.append(SweepJob(**(options | {"train": {"batch_size": 8, "lora_rank": 2}})))
    check_marks("sweep", jobs, of_model(sweep.make_plan), tmp_path)


def test_what_is_resolved_counts_by_what_it_leads_to(small_pairs, digits, tiny_turbo, tmp_path):
    held = EvaluateJob(pairs=small_pairs, model={"base": tiny_turbo}, out=tmp_path / "out", rows=24)
    plan = of_evaluation
    assert plan(held) == plan(held.model_copy(update={"rows": 100}))  # there are 24
    assert plan(held) != plan(held.model_copy(update={"rows": 16}))
    assert plan(held) == plan(held.model_copy(update={"features": str(TINY_CLIP)}))
    job = AssignJob(pairs=small_pairs, model=tiny_turbo, out=tmp_path / "out")
    plan = of_model(assign.make_plan)
    linked = tmp_path / "linked"
    linked.symlink_to(Path(tiny_turbo))
    assert plan(job) == plan(job.model_copy(update={"rows_per_shard": 64, "model": linked}))
    for own in ({"rows_per_shard": 5}, {"pairs": str(digits)}, {"prompt_field": "prompt"}):
        assert plan(job) != plan(job.model_copy(update=own))
    by_reward = reward_job(tiny_turbo, tmp_path)
    plan = of_model(reward.make_plan)
    assert plan(by_reward) == plan(by_reward.model_copy(update={"reward": "clip"}))
    assert plan(by_reward) != plan(by_reward.model_copy(update={"reward": "clip:2"}))
    assert {mark_of(field) for _, field in leaves(AssignJob)} == {decides, resolved, conduct}
