"""What a training worker says and does before it trains."""

import pytest

from rayjobs.train.config import TrainJob
from rayjobs.train.worker import out_of_memory, train_worker
from rayjobs.training.run_files import STOPPED

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
    job = one().model_copy(update={"out": tmp_path})
    assert train_worker({"job": job.model_dump(mode="json")}) == {"error": "what was wrong"}
