"""The M-step job on a real Ray, trained in this process: what it leaves, what it refuses, what its options do."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.elsewhere import general_prompts
from ortho_core.mstep.loss import TERMS
from ortho_core.records.assignments import Assignments
from ortho_core.records.plan import read_plan
from ortho_core.storage.open import open_store
from rayjobs.train.config import TrainJob
from rayjobs.train.job import describe, held_line, run
from rayjobs.train.plan import TrainPlan
from tests.rayjobs.same import replanned
from tests.rayjobs.train.training import (
    altered,
    diffusers_images,
    history,
    images,
    job,
    losses,
    other_model,
    planned,
    summary,
    weights,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def test_the_output_is_complete_and_loads(trained, tiny_turbo):
    names = {p.name for p in trained.iterdir()}
    assert names == {
        *(f"checkpoint-{x}" for x in ("best", "final", "epoch-001", "epoch-002")),
        *("plan.json", "train_history.jsonl", "train_history.png", "train_summary.json", "tensorboard"),
    }
    said = summary(trained)
    assert (said["rows"], said["updates"], len(said["epochs"]), said["skipped_updates"]) == (24, 6, 2, [])
    assert said["tracker_failures"] == said["validations"] == []
    before, after = weights(tiny_turbo), weights(trained / "checkpoint-final")
    assert any(not torch.equal(before[k], after[k]) for k in before)
    for same in ("epoch-002", "best"):
        last = weights(trained / f"checkpoint-{same}")
        assert all(torch.equal(last[k], after[k]) for k in after)
    assert losses(trained)[1] < losses(trained)[0]
    assert (said["best_epoch"], said["best_loss"]) == (2, losses(trained)[1])
    with Image.open(trained / "train_history.png") as picture:
        assert picture.size[0] > picture.size[1] > 300


def test_the_log_has_every_update_once_and_an_epoch_is_their_mean(trained):
    lines = history(trained)
    assert [line["update"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(set(line) == {"update", "group", "grad_norm", "lr", *TERMS} for line in lines)
    assert lines[0]["preserve_latent"] == pytest.approx(0, abs=1e-9)
    for number, epoch in enumerate(summary(trained)["epochs"]):
        for term in TERMS:
            mean = np.mean([line[term] for line in lines[3 * number : 3 * number + 3]])
            assert epoch[term] == pytest.approx(mean, rel=1e-6)


def test_the_checkpoint_makes_the_same_image_in_plain_diffusers(trained):
    from diffusers import DiffusionPipeline

    theirs = diffusers_images(DiffusionPipeline.from_pretrained(trained / "checkpoint-final"))
    torch.testing.assert_close(
        images(load_generator(ModelFolder.open(trained / "checkpoint-final"))), theirs, rtol=0, atol=1e-5
    )


def test_a_finished_run_returns_at_once_and_a_changed_one_is_refused(trained, assigned, tiny_turbo):
    before = (trained / "train_summary.json").read_bytes()
    # Options that do not change what comes out are no other run.
    for own in ({}, {"num_workers": 2, "parallel": "fsdp", "log_every": 3, "gradient_accumulation_steps": 2}):
        assert run(job(assigned, tiny_turbo, trained, **own)) == 0
    assert (trained / "train_summary.json").read_bytes() == before
    with pytest.raises(UserError, match=r"config\.lr was 0\.001, now 0\.01"):
        run(job(assigned, tiny_turbo, trained, lr=1e-2))


def test_a_dry_run_tells_the_plan_and_writes_nothing(assigned, tiny_turbo, tmp_path):
    said = describe(job(assigned, tiny_turbo, tmp_path / "out"))
    assert (said["rows"], said["updates"]) == (24, 6)
    assert describe(job(assigned, tiny_turbo, tmp_path / "out", ema=True))["bytes_of_checkpoints_about"] == (
        2 * said["bytes_of_checkpoints_about"]
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 32}, "--batch-size: 32 is more than the 24 assigned rows"),
        ({"num_workers": 3}, "--batch-size: 8 does not divide among 3 workers$"),
        (
            {"num_workers": 2, "gradient_accumulation_steps": 3},
            "--batch-size: 8 does not divide among 2 workers × 3 micro-batches",
        ),
        (
            {"preserve_differences": True, "preserve_batch_size": 5},
            "--preserve-differences needs pairs of rows: --preserve-batch-size 5 is odd",
        ),
        ({"assignments": "nowhere"}, "nowhere holds no assignments"),
        (
            {"noise": "random", "center_noise": True},
            "--center-noise applies to assigned noise; the mean of --noise random is zero",
        ),
        (
            {"noise": "online", "center_noise": True},
            "--center-noise applies to assigned noise; the mean of --noise online is",
        ),
        ({"noise": "online", "match_patch_size": 3}, "patch_size 3 does not divide the latent"),
        ({"assignments": None}, "nothing to train on: give --assignments, or --pairs with --noise online or random"),
        (
            {"assignments": None, "noise": "online", "match_refresh": 0.2, "center_noise": True, "pairs": "nowhere"},
            "--center-noise applies to assigned noise: give --assignments",
        ),
        ({"assignments": None, "pairs": "nowhere"}, "--noise matched needs --assignments"),
        ({"prompt_field": "text"}, "with --assignments the pairs are read as they were assigned"),
        ({"preserve_prompts": "nowhere.txt"}, r"prompts file nowhere\.txt: No such file"),
        ({"validation": "nowhere"}, "nowhere holds no assignments"),
        ({"num_workers": 8, "validation_rows": 4}, "--validation: .* has fewer rows than the 8 workers"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(assigned, tiny_turbo, tmp_path, options, says):
    if "validation_rows" in options:
        options = {**options, "validation": assigned[1]}
    with pytest.raises(UserError, match=says) as raised:
        run(job(assigned, tiny_turbo, tmp_path / "out", **options))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_workers_that_do_not_fit_the_cluster_are_refused(assigned, tiny_turbo, tmp_path):
    with pytest.raises(UserError, match="--num-workers: 8 is more than the cluster has room for"):
        run(job(assigned, tiny_turbo, tmp_path / "out", num_workers=8, cpus_per_worker=1))


def test_assignments_that_do_not_fit_are_refused_before_anything_starts(assigned, tiny_turbo, tmp_path):
    out = tmp_path / "out"

    def refused(says, model=tiny_turbo, folder=assigned[1], **options):
        with pytest.raises(UserError, match=says) as raised:
            planned(job((None, folder), model, out, **options))
        assert "\n" not in str(raised.value)

    other = tmp_path / "larger"
    shutil.copytree(tiny_turbo, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 8}))
    refused(r"120 numbers of skew per image; a model with latent \(8, 8, 8\) .* made for another model", model=other)
    refused("--preserve-model .* has another latent shape than --model", preserve_model=other)
    refused("made without --store-latents", validation=replanned(assigned[1], tmp_path / "b", {"store_latents": False}))
    gone = shutil.copytree(assigned[1], tmp_path / "c")
    next(gone.glob("part-000001-*")).unlink()
    refused(r"not complete: 1 of 3 parts are missing \(part-000001-.*run the same `ortho assign` again", folder=gone)
    first, name = altered(assigned, tmp_path / "d", 0, skew=lambda skew: [skew[0] + 0.1, *skew[1:]])
    refused(rf"the rebuilt noise of \['{name}'\] does not match its checksum; assign again", folder=first[1])


def test_stale_assignments_are_refused_unless_allowed_or_not_used(assigned, tiny_turbo, tmp_path):
    other = other_model(tiny_turbo, tmp_path / "other")
    found = {"made": ModelFolder.open(tiny_turbo).fingerprint, "now": ModelFolder.open(other).fingerprint}
    with pytest.raises(UserError, match=rf"fingerprint {found['made']}\) than --model .*{found['now']}.*--allow-stale"):
        planned(job(assigned, other, tmp_path / "out"))
    plan, _ = planned(job(assigned, other, tmp_path / "out", allow_stale=True))
    assert plan.model_fingerprint == found["now"]
    planned(job(assigned, other, tmp_path / "out", noise="random"))


def test_direct_and_matched_training_differ_in_the_noise_and_so_in_the_loss(trained, assigned, tiny_turbo, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red handwritten one on a gray background\n")
    options = {"noise": "random", "preserve_prompts": prompts, "preserve_batch_size": 4, "save_every": 0}
    assert run(job(assigned, tiny_turbo, tmp_path / "out", **options)) == 0
    assert history(tmp_path / "out")[0]["latent"] > history(trained)[0]["latent"]
    names = {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()}
    assert names == {"checkpoint-best", "checkpoint-final"}
    before = read_plan(open_store(tmp_path / "out"), TrainPlan)
    prompts.write_text("other words\n")
    changed, _ = planned(job(assigned, tiny_turbo, tmp_path / "out", **options))
    assert changed.preserve_prompts != before.preserve_prompts


def test_training_on_centred_noise_starts_where_the_model_is_at_it(trained, assigned, generator, tiny_turbo, tmp_path):
    given = job(
        assigned, tiny_turbo, tmp_path / "out", center_noise=True, num_workers=0, epochs=1, save_every=0, log_every=1
    )
    assert run(given) == 0
    assignments = Assignments(assigned[1])
    every = assignments.noise(range(24), (4, 8, 8))
    index = [int(i) for i in planned(given)[1].order.share(0, 0)]
    prompts = [row["prompt"] for row in assignments.rows(index, ["prompt"])]
    with torch.no_grad():
        made = generator.denoise(every[index] - every.mean(0), generator.encode_prompts(prompts))
    expected = (made - assignments.targets(index, (4, 8, 8))).square().mean()
    first = history(tmp_path / "out")[0]
    assert first["update"] == 1
    assert first["latent"] == pytest.approx(float(expected), rel=1e-3)


def test_images_are_found_where_the_assignments_say(assigned, tiny_turbo, tmp_path):
    _, data = planned(job(assigned, tiny_turbo, tmp_path / "out", pixel_l1_weight=0.5))
    assert data.needs_images
    assert data.pairs.location == str(assigned[0])
    assert data.image_size == (32, 32)
    _, data = planned(job(assigned, tiny_turbo, tmp_path / "out"))
    assert data.pairs is None
    bare = shutil.copytree(assigned[1], tmp_path / "bare")
    (bare / "summary.json").unlink()
    with pytest.raises(UserError, match=r"bare/summary\.json does not name the images' location"):
        planned(job((None, bare), tiny_turbo, tmp_path / "out", pixel_l1_weight=0.5))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 4),
        ({"batch_size": 2}, 1),
        ({"batch_size": 30}, 8),
        ({"num_workers": 3, "batch_size": 30}, 8),
        ({"num_workers": 8, "gradient_accumulation_steps": 2}, 4),
        ({"preserve_differences": True, "batch_size": 4}, 2),
        ({"preserve_differences": True, "batch_size": 12}, 4),
        ({"preserve_batch_size": 5, "num_workers": 2}, 5),
        ({"preserve_latent_weight": 0}, 0),
    ],
)
def test_a_quarter_of_an_update_is_preserve_rows_whatever_computes_them(options, rows):
    made = TrainJob(**{"assignments": "a", "model": "m", "out": "o", **options})
    assert made.preserve_rows == rows
    made.check_shares(100, "rows")


def test_a_model_is_held_elsewhere_by_default_and_where_it_is_told_to_be(assigned, tiny_turbo, tmp_path):
    given = {"preserve_prompts": "elsewhere", "preserve_batch_size": None}
    held = job(assigned, tiny_turbo, tmp_path / "out", **given)
    plan, data = planned(held)
    assert (data.preserve_rows, data.preserve_prompts) == (2, general_prompts())
    assert "at prompts that no pair has, 2 rows of each update" in held_line(held, data)
    there = job(assigned, tiny_turbo, tmp_path / "out")
    at_training, rows = planned(there)
    assert (rows.preserve_rows, rows.preserve_prompts) == (8, ())
    assert "at the training prompts" in held_line(there, rows)
    assert at_training.preserve_prompts != plan.preserve_prompts


def test_the_defaults_ask_for_nothing_that_is_not_there(tiny_turbo):
    made = TrainJob(assignments="a", model="m", out="o")
    assert (made.world, made.rows_at_once, made.centers, made.preserve_file) == (1, 16, True, None)
    assert made.model_copy(update={"noise": "random"}).centers is False
    assert made.model_copy(update={"num_workers": 2, "gradient_accumulation_steps": 4}).rows_at_once == 2
    model = ModelFolder.open(tiny_turbo)
    assert made.adapter(model) is None
    assert made.model_copy(update={"lora_rank": 4}).adapter(model) == Lora(4, 4.0, ("to_q", "to_k", "to_v", "to_out.0"))
