"""The prompts of an M-step, encoded before it."""

import pytest

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.validation import validated_rows
from ortho_core.records.assignments import Assignments
from rayjobs.train.job import run
from rayjobs.train.prompts import validated
from tests.rayjobs.encodings import count_encodings
from tests.rayjobs.train.training import altered, assert_same_weights, job, losses

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_run_reads_its_embeddings_and_no_bit_changes(assigned, tiny_turbo, trained, tmp_path, monkeypatch):
    encoded, prompts = count_encodings(monkeypatch), Assignments(assigned[1]).prompts()
    options = {"prompt_embeddings": tmp_path / "embeddings"}
    assert run(job(assigned, tiny_turbo, tmp_path / "out", **options)) == 0
    assert encoded == {"pass": dict.fromkeys(prompts, 1), "assign": {}, "train": {}}
    assert losses(tmp_path / "out") == losses(trained)
    assert_same_weights(tmp_path / "out" / "checkpoint-final", trained / "checkpoint-final", 0)
    # An adapter on the same text encoders, with further prompts to hold it and to validate it on.
    (_, held), _ = altered(assigned, tmp_path / "held", 3, prompt=lambda prompt: "a grey fish")
    options |= {"epochs": 1, "lora_rank": 2, "validation": held}
    (tmp_path / "held.txt").write_text("a red cat\na blue dog\n")
    options |= {"preserve_prompts": tmp_path / "held.txt"}
    assert run(job(assigned, tiny_turbo, tmp_path / "adapted", **options)) == 0
    assert encoded == {
        "pass": dict.fromkeys([*prompts, "a red cat", "a blue dog", "a grey fish"], 1),
        "assign": {},
        "train": {},
    }


def test_pairs_without_assignments_are_read_for_their_prompts(assigned, tiny_turbo, tmp_path, monkeypatch):
    encoded = count_encodings(monkeypatch)
    options = {"assignments": None, "pairs": assigned[0], "noise": "random", "epochs": 1}
    assert run(job(assigned, tiny_turbo, tmp_path / "out", **options, prompt_embeddings=tmp_path / "embeddings")) == 0
    assert encoded == {"pass": dict.fromkeys(Assignments(assigned[1]).prompts(), 1), "assign": {}, "train": {}}


def test_the_prompts_that_all_workers_validate_on_are_listed(assigned, tiny_turbo, tmp_path):
    held = Assignments(assigned[1])
    one = job(assigned, tiny_turbo, tmp_path / "out", validation=assigned[1], validation_rows=9, num_workers=2)
    rows = [row for rank in range(2) for some, _ in validated_rows(held, 9, rank, 2, True) for row in some]
    assert rows == list(range(8))
    model = ModelFolder.open(tiny_turbo)
    assert validated(one, model) == [row["prompt"] for row in held.rows(rows, ["prompt"])]
    assert validated(one.model_copy(update={"validation": None}), model) == []
