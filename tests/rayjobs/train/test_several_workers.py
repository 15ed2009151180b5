"""Several training processes against one: the same losses, weights and figures."""

import pytest
import torch
from diffusers import DiffusionPipeline

from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.train.job import run
from tests.rayjobs.train.training import (
    assert_same_lines,
    assert_same_weights,
    diffusers_images,
    history,
    images,
    job,
    losses,
    other_model,
    summary,
)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def options(assigned, tiny_turbo, tmp_path_factory):
    """All that is shared out: rows, both preserve terms with prompts of their own, as many as do not divide, validation.

    They hold to another model than the run starts from: at the start itself, |a - b| has the sign of a rounding error.
    """
    folder = tmp_path_factory.mktemp("options")
    (folder / "prompts.txt").write_text("a red handwritten one on a gray background\na handwritten nine\n")
    preserve = {"preserve_pixel_weight": 0.2, "preserve_batch_size": 5, "preserve_prompts": folder / "prompts.txt"}
    preserve["preserve_model"] = other_model(tiny_turbo, folder / "other")
    return {**preserve, "validation": assigned[1], "validation_rows": 16, "ema": True, "ema_decay": 0.5, "lr": 3e-4}


@pytest.fixture(scope="module")
def one(assigned, tiny_turbo, tmp_path_factory, options, ray_session):
    out = tmp_path_factory.mktemp("one") / "out"
    assert run(job(assigned, tiny_turbo, out, **options)) == 0
    return out


def assert_same_run(out, one):
    assert losses(out) == pytest.approx(losses(one), abs=1e-4)
    assert_same_lines(history(out), history(one), 1e-3)
    assert len(history(out)) == 6
    for figures, expected in zip(summary(out)["validations"], summary(one)["validations"], strict=True):
        assert figures == pytest.approx(expected, abs=1e-4)
    for name in ("checkpoint-final", "checkpoint-final-ema"):
        assert_same_weights(out / name, one / name, 1e-3)


def test_two_workers_and_micro_batches_train_the_same_model(one, options, assigned, tiny_turbo, tmp_path):
    own = {"num_workers": 2, "gradient_accumulation_steps": 2}
    assert run(job(assigned, tiny_turbo, tmp_path / "two", **options, **own)) == 0
    assert_same_run(tmp_path / "two", one)


@pytest.mark.slow
def test_two_sharded_workers_train_the_same_model(one, options, assigned, tiny_turbo, tmp_path):
    out, own = tmp_path / "sharded", {"num_workers": 2, "parallel": "fsdp"}
    assert run(job(assigned, tiny_turbo, out, **options, **own)) == 0
    assert_same_run(out, one)
    theirs = diffusers_images(DiffusionPipeline.from_pretrained(out / "checkpoint-final"))
    torch.testing.assert_close(
        images(load_generator(ModelFolder.open(out / "checkpoint-final"))), theirs, rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_two_workers_train_the_same_adapter_on_a_packed_base(assigned, tiny_turbo, tmp_path):
    own = {"lora_rank": 2, "lr": 3e-2, "quantize": "nf4"}
    for out, workers in (("one", 0), ("two", 2)):
        assert run(job(assigned, tiny_turbo, tmp_path / out, **own, num_workers=workers)) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert_same_weights(tmp_path / "two" / "checkpoint-final", tmp_path / "one" / "checkpoint-final", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_train_the_same_adapter(adapted, assigned, tiny_turbo, tmp_path, parallel):
    own = {"lora_rank": 2, "lr": 3e-2, "num_workers": 2, "parallel": parallel, "checkpoint_every": 2}
    assert run(job(assigned, tiny_turbo, tmp_path / "two", **own)) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(adapted), abs=1e-4)
    assert_same_weights(tmp_path / "two" / "checkpoint-final", adapted / "checkpoint-final", 1e-3)
