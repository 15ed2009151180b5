"""The M-step job on a real Ray: one worker, two workers, a killed driver, and the folders that come out."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.generators import load_generator
from rayjobs.train import TrainJob, plan, run

SETTINGS = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "preserve_latent_weight": 0.5, "cpus_per_worker": 0.5}


def job(assigned, model, out, **options):
    return TrainJob(**{**SETTINGS, "assignments": assigned[1], "model": model, "out": out, **options})


def losses(out):
    return [e["loss"] for e in json.loads((out / "train_summary.json").read_text())["epochs"]]


def weights(folder):
    return load_generator(folder).trainable.state_dict()


@pytest.fixture(scope="module")
def trained(assigned, tiny_turbo, tmp_path_factory, ray_session):
    """One worker, undisturbed."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert run(job(assigned, tiny_turbo, out)) == 0
    return out


def test_the_output_is_complete_and_loads(trained, tiny_turbo):
    names = {p.name for p in trained.iterdir()}
    assert names == {
        *(f"checkpoint-{x}" for x in ("best", "final", "epoch-001", "epoch-002")),
        *("plan.json", "train_history.jsonl", "train_history.png", "train_summary.json"),
    }
    summary = json.loads((trained / "train_summary.json").read_text())
    assert (summary["rows"], summary["updates"], len(summary["epochs"])) == (24, 6, 2)
    before, after = weights(tiny_turbo), weights(trained / "checkpoint-final")
    assert any(not torch.equal(before[k], after[k]) for k in before)
    last = weights(trained / "checkpoint-epoch-002")
    assert all(torch.equal(last[k], after[k]) for k in after)
    assert losses(trained)[1] < losses(trained)[0]


def test_the_checkpoint_makes_the_same_image_in_plain_diffusers(trained):
    from diffusers import DiffusionPipeline

    generator = load_generator(trained / "checkpoint-final")
    pipeline = DiffusionPipeline.from_pretrained(trained / "checkpoint-final")
    pipeline.set_progress_bar_config(disable=True)
    noise, prompt = generator.base_noise([5]), "a red handwritten four on a gray background"
    with torch.no_grad():
        ours = generator.decode(generator.denoise(noise, generator.encode_prompts([prompt]))).clamp(0, 1)
    theirs = pipeline(prompt, latents=noise, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("ray_session")
def test_two_workers_train_the_same_model(trained, assigned, tiny_turbo, tmp_path):
    assert run(job(assigned, tiny_turbo, tmp_path / "two", num_workers=2)) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(trained), abs=1e-4)
    one, two = weights(trained / "checkpoint-final"), weights(tmp_path / "two" / "checkpoint-final")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3)


def test_a_finished_run_returns_at_once_and_a_changed_one_is_refused(trained, assigned, tiny_turbo):
    before = (trained / "train_summary.json").read_bytes()
    assert run(job(assigned, tiny_turbo, trained)) == 0
    assert (trained / "train_summary.json").read_bytes() == before
    with pytest.raises(UserError, match=r"config\.lr was 0\.001, now 0\.01"):
        run(job(assigned, tiny_turbo, trained, lr=1e-2))


@pytest.mark.usefixtures("ray_session")
def test_a_killed_driver_is_resumed_to_the_same_losses(trained, assigned, tiny_turbo, tmp_path):
    out = tmp_path / "killed"
    options = {**SETTINGS, "assignments": assigned[1], "model": tiny_turbo, "out": out}
    argv = [sys.executable, "-m", "rayjobs.train", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    driver = subprocess.Popen(argv, env=environment, start_new_session=True)
    deadline = time.monotonic() + 240
    # Ray Train writes a manager's snapshot once it has registered a checkpoint: from then on epoch 1 is done.
    while not list(out.glob("state/checkpoint_*/state.pt")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert (out / "checkpoint-epoch-001").is_dir()
    assert not (out / "train_summary.json").exists()
    assert run(job(assigned, tiny_turbo, out)) == 0
    assert losses(out) == pytest.approx(losses(trained), abs=1e-5)
    updates = [json.loads(line)["update"] for line in (out / "train_history.jsonl").read_text().splitlines()]
    assert updates == sorted(set(updates))
    assert not list(out.glob(".*.partial"))


def test_a_dry_run_tells_the_plan_and_writes_nothing(assigned, tiny_turbo, tmp_path):
    said = plan(job(assigned, tiny_turbo, tmp_path / "out"))
    assert (said["rows"], said["updates"]) == (24, 6)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 32}, "--batch-size: 32 is more than the 24 assigned rows"),
        ({"num_workers": 3}, "--batch-size: 8 does not divide among 3 workers"),
        ({"assignments": "nowhere"}, "nowhere holds no assignments"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(assigned, tiny_turbo, tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        run(job(assigned, tiny_turbo, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(assigned, tiny_turbo, tmp_path):
    from ortho_core.errors import RunFailed

    with pytest.raises(RunFailed, match="the loss of epoch 1 is not finite") as raised:
        run(job(assigned, tiny_turbo, tmp_path / "out", lr=1e30, epochs=1))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "checkpoint-final").exists()
