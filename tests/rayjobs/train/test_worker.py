"""What a training worker says and does before it trains, and that it trains what was planned with."""

import shutil

import pytest

from ortho_core.errors import RunFailed
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run as assign
from rayjobs.train.config import TrainJob
from rayjobs.train.job import run
from rayjobs.train.memory import out_of_memory
from rayjobs.train.worker import train_worker
from rayjobs.training.run_files import STOPPED
from tests.rayjobs.swapped import UNET, swap_before, swap_weights
from tests.rayjobs.train.training import job, other_model, summary

#: What trains, once all is planned.
LAUNCH = "rayjobs.training.launch.train"
ALL = {
    "--gradient-accumulation-steps",
    "--gradient-checkpointing",
    "--mixed-precision fp16",
    "--lora-rank 16",
    "--optimizer adafactor",
    "--preserve-latent-weight 0",
    "--parallel fsdp --num-workers N",
}


def one(**options):
    return TrainJob(assignments="a", model="m", out="o", **{"mixed_precision": "no", **options})


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({}, set()),
        ({"batch_size": 1}, {"--gradient-accumulation-steps"}),
        ({"gradient_accumulation_steps": 16}, {"--gradient-accumulation-steps"}),
        ({"gradient_checkpointing": True}, {"--gradient-checkpointing"}),
        ({"mixed_precision": "auto", "optimizer": "adafactor"}, {"--mixed-precision fp16", "--optimizer adafactor"}),
        ({"lora_rank": 4}, {"--lora-rank 16", "--optimizer adafactor"}),
        ({"preserve_latent_weight": 0}, {"--preserve-latent-weight 0"}),
        ({"parallel": "fsdp", "num_workers": 2}, {"--parallel fsdp --num-workers N"}),
    ],
)
def test_where_memory_runs_out_what_is_not_on_yet_is_offered(options, left_out):
    said = out_of_memory(one(**options))
    remedies = said.partition("to need less: ")[2]
    assert {remedy for remedy in ALL if remedy in remedies} == ALL - left_out
    assert "\n" not in said


def test_where_memory_runs_out_it_says_how_much_was_computed_at_once():
    said = out_of_memory(one(batch_size=32, num_workers=2, gradient_accumulation_steps=4))
    assert said.startswith(
        "GPU memory ran out with 4 rows at once on each worker (--batch-size 32 over 2 workers in 4 "
    )
    assert "over 1 workers in 1 micro-batches" in out_of_memory(one(num_workers=0))


def test_a_worker_that_is_started_again_after_a_fault_of_the_input_returns_it(tmp_path):
    (tmp_path / STOPPED).write_text("what was wrong")
    stopped = one().model_copy(update={"out": tmp_path})
    assert train_worker({"job": stopped.model_dump(mode="json")}) == {"error": "what was wrong"}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("which", ["model", "preserve_model"])
def test_a_model_that_is_swapped_after_planning_ends_the_run(which, assigned, tiny_turbo, tmp_path, monkeypatch):
    models = {
        "model": shutil.copytree(tiny_turbo, tmp_path / "model"),
        "preserve_model": other_model(tiny_turbo, tmp_path / "held"),
    }
    swap_before(monkeypatch, LAUNCH, lambda: swap_weights(models[which] / UNET))
    with pytest.raises(RunFailed, match=rf"{models[which] / UNET} has changed since the run was planned; put back"):
        run(job(assigned, out=tmp_path / "out", **models))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.usefixtures("ray_session")
def test_the_rows_to_validate_on_are_those_that_were_planned_with(assigned, tiny_turbo, tmp_path, monkeypatch):
    held = shutil.copytree(assigned[1], tmp_path / "held")
    other = tmp_path / "other"
    assert assign(AssignJob(pairs=assigned[0], model=tiny_turbo, out=other, steps=1, slots=8, workers=0)) == 0

    def swap():
        shutil.rmtree(held)
        other.rename(held)

    swap_before(monkeypatch, LAUNCH, swap)
    with pytest.raises(RunFailed, match=rf"the content of --validation {held} has changed since the run was planned"):
        run(job(assigned, tiny_turbo, tmp_path / "out", validation=str(held)))


@pytest.mark.usefixtures("ray_session")
def test_the_summary_says_what_the_model_was_loaded_from(assigned, tiny_turbo, tmp_path):
    assert run(job(assigned, tiny_turbo, tmp_path / "out", epochs=1)) == 0
    assert summary(tmp_path / "out")["loaded_fingerprint"] == ModelFolder.open(tiny_turbo).fingerprint
