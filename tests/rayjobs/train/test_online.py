"""Matching while training, as a whole: what a run logs, several workers, a kill, and pairs to which nothing was assigned."""

import pytest

from ortho_core.estep.config import MEASURED_WITH
from ortho_core.mstep.update import MStep
from ortho_core.records.assignments import Assignments
from rayjobs.train.job import describe, run
from tests.conftest import copy_pairs
from tests.rayjobs.train.training import (
    assert_same_lines,
    assert_same_weights,
    history,
    job,
    losses,
    summary,
)

pytestmark = pytest.mark.usefixtures("ray_session")
KEEPS = {
    "latest": {"noise": "online", "match_steps": "3:2", "match_refresh": 0.2, "match_keep": "latest"},
    "assigned": {"noise": "online", "match_steps": "2", "match_refresh": 0.5, "match_sensitivity_every": 3},
}


@pytest.fixture(scope="module")
def undisturbed(assigned, tiny_turbo, tmp_path_factory, ray_session):
    """By what is kept, a run of six updates in two epochs."""
    outs = {}
    for keep, options in KEEPS.items():
        outs[keep] = tmp_path_factory.mktemp(keep) / "out"
        assert run(job(assigned, tiny_turbo, outs[keep], **options)) == 0
    return outs


def assert_same_run(out, other, tolerance):
    assert len(history(out)) == 6
    assert_same_lines(history(out), history(other), tolerance)
    assert_same_weights(out / "checkpoint-final", other / "checkpoint-final", max(tolerance, 1e-4))


def test_the_log_has_the_loss_before_and_after_the_search_which_lowers_it(undisturbed, assigned):
    lines = history(undisturbed["latest"])
    assert [line["update"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["match_final"] < line["match_initial"]
        # The update is made at the noise that was found, with the weights that it was found for.
        assert line["latent"] == pytest.approx(line["match_final"], rel=1e-4)
    steps = [3, 3, 3, 2, 2, 2]
    assert summary(undisturbed["latest"])["match_evaluations"] == 8 * sum(steps) + MEASURED_WITH
    assert summary(undisturbed["assigned"])["match_evaluations"] == 8 * 12 + 2 * MEASURED_WITH
    # What was found the last time is nearer to the targets than what the first model was matched with.
    assert lines[3]["match_initial"] < history(undisturbed["assigned"])[3]["match_initial"]


def test_a_search_from_noise_that_is_all_kept_begins_at_the_assigned_noise(assigned, tiny_turbo, tmp_path):
    options = {"noise": "online", "match_steps": "1", "match_refresh": 0.0, "epochs": 1, "batch_size": 24}
    assert run(job(assigned, tiny_turbo, tmp_path / "out", **options)) == 0
    (line,) = history(tmp_path / "out")
    recorded = [row["latent_loss"] for row in Assignments(assigned[1]).rows(range(24), ["latent_loss"])]
    assert line["match_initial"] == pytest.approx(sum(recorded) / 24, rel=1e-4)


@pytest.mark.parametrize("keep", ["latest", pytest.param("assigned", marks=pytest.mark.slow)])
def test_two_workers_and_micro_batches_match_and_train_the_same(undisturbed, assigned, tiny_turbo, tmp_path, keep):
    own = {"num_workers": 2, "gradient_accumulation_steps": 2 if keep == "latest" else 1}
    assert run(job(assigned, tiny_turbo, tmp_path / "two", **KEEPS[keep], **own)) == 0
    assert_same_run(tmp_path / "two", undisturbed[keep], 1e-3)
    assert losses(tmp_path / "two") == pytest.approx(losses(undisturbed[keep]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_sharded_workers_match_and_train_the_same(assigned, tiny_turbo, tmp_path, lora_rank):
    options = {"noise": "online", "match_steps": "4", "lora_rank": lora_rank, "lr": 3e-2 if lora_rank else 1e-3}
    assert run(job(assigned, tiny_turbo, tmp_path / "one", **options)) == 0
    assert run(job(assigned, tiny_turbo, tmp_path / "two", **options, num_workers=2, parallel="fsdp")) == 0
    assert_same_run(tmp_path / "two", tmp_path / "one", 1e-3)


@pytest.mark.parametrize("keep", KEEPS)
def test_a_run_that_was_killed_goes_on_to_the_same_losses(
    undisturbed, assigned, tiny_turbo, tmp_path, monkeypatch, keep
):
    one = job(assigned, tiny_turbo, tmp_path / "out", checkpoint_every=2, **KEEPS[keep])
    updates = []
    usual = MStep.update

    def dies_at_the_sixth(self, batch):
        updates.append(len(batch.noise))
        if len(updates) == 6:
            raise KeyboardInterrupt
        return usual(self, batch)

    monkeypatch.setattr(MStep, "update", dies_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run(one)
    assert run(one) == 0
    assert len(updates) == 6 + 2
    assert_same_run(tmp_path / "out", undisturbed[keep], 1e-5)


def test_pairs_alone_train_as_assignments_do_where_all_noise_is_fresh(assigned, tiny_turbo, tmp_path):
    options = {"noise": "online", "match_steps": "3", "epochs": 1}
    assert run(job(assigned, tiny_turbo, tmp_path / "assigned", **options)) == 0
    assert run(job(assigned, tiny_turbo, tmp_path / "pairs", assignments=None, pairs=assigned[0], **options)) == 0
    assert_same_lines(history(tmp_path / "pairs"), history(tmp_path / "assigned"), 1e-3)
    assert len(history(tmp_path / "pairs")) == 3
    assert summary(tmp_path / "pairs")["unusable_rows"] == 0


def test_unusable_rows_of_pairs_give_their_place_to_others_and_are_told(digits, tiny_turbo, tmp_path):
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    (pairs / "images" / "0003.png").write_bytes(b"no picture")
    (pairs / "images" / "0017.png").unlink()
    options = {"assignments": None, "pairs": pairs, "noise": "online", "match_steps": "2", "match_refresh": 0.5}
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, workers in zip(outs, (0, 2), strict=True):
        assert run(job((None, None), tiny_turbo, out, num_workers=workers, match_keep="latest", **options)) == 0
        told = summary(out)
        assert told["unusable_rows"] == 2
        assert [said.partition(":")[0] for said in sorted(told["unusable"])] == ["row 17", "row 3"]
    assert_same_run(outs[1], outs[0], 1e-3)


def test_a_dry_run_tells_the_evaluations(assigned, tiny_turbo, tmp_path):
    options = {"noise": "online", "match_steps": "4:2", "match_sensitivity_every": 2}
    said = describe(job(assigned, tiny_turbo, tmp_path / "out", **options))
    assert said["evaluations_of_matching"] == 8 * (4 + 4 + 3 + 3 + 2 + 2) + 3 * MEASURED_WITH
    pairs = {"assignments": None, "pairs": assigned[0], "noise": "random"}
    said = describe(job(assigned, tiny_turbo, tmp_path / "out", **pairs))
    assert (said["assignments"], said["rows"], said["recognised"]["rows"]) == (None, 24, 24)
    assert "evaluations_of_matching" not in said
