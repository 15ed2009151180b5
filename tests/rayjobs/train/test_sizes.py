"""The M-step on images of several sizes, as a whole: several workers, validation, online matching, what a model records."""

import json

import pytest

from ortho_core.errors import UserError
from ortho_core.framing.framing import Framing
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.size_order import SizeOrder
from ortho_core.mstep.validation import validated_rows
from ortho_core.records.assignments import Assignments
from rayjobs.assign.config import AssignJob, assigned_framing
from rayjobs.train.job import mean_noise, run
from tests.conftest import BUCKETS
from tests.rayjobs.train.training import assert_same_lines, assert_same_weights, history, job, planned, summary

pytestmark = pytest.mark.usefixtures("ray_session")
SMALL = {"batch_size": 6, "preserve_batch_size": 2, "center_noise": None, "epochs": 2}


@pytest.fixture(scope="module")
def undisturbed(assigned_mixed, tiny_turbo, tmp_path_factory, ray_session):
    """Six updates, validated on rows of all sizes, in this process."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    assert run(job(assigned_mixed, tiny_turbo, out, validation=assigned_mixed[1], validation_rows=10, **SMALL)) == 0
    return out


def test_it_learns_from_images_of_every_size(undisturbed, assigned_mixed, tiny_turbo):
    lines = history(undisturbed)
    assert len(lines) == 2 * (22 // 6)
    _, data = planned(job(assigned_mixed, tiny_turbo, undisturbed, **SMALL))
    assert isinstance(data.order, SizeOrder)
    seen = {part.frames[0][4:][0] for number in range(3) for part in data.share(0, number).parts}
    assert seen == {40, 32, 24}
    first, *_, last = summary(undisturbed)["validations"]
    assert first["drift"] == 0
    assert last["latent"] < first["latent"]
    assert (undisturbed / "samples" / "update-000006.png").is_file()


def test_the_model_records_the_sizes_and_the_next_search_uses_them(undisturbed, assigned_mixed):
    made = undisturbed / "checkpoint-final"
    assert json.loads((made / "one_step.json").read_text()) == {"buckets": BUCKETS.split(",")}
    card = (made / "README.md").read_text()
    assert f"| sizes of images | {', '.join(BUCKETS.split(','))} |" in card
    again = AssignJob(pairs=assigned_mixed[0], model=made, out="unused")
    framing = assigned_framing(again, ModelFolder.open(made))
    assert framing.sizes == Assignments(assigned_mixed[1]).plan.framing((32, 32)).sizes
    assert framing.tells_frames
    # An option of the user's wins.
    assert assigned_framing(again.model_copy(update={"buckets": "none"}), ModelFolder.open(made)) == Framing(
        ((32, 32),)
    )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_and_micro_batches_train_the_same(undisturbed, assigned_mixed, tiny_turbo, tmp_path, parallel):
    out = tmp_path / "out"
    options = {"num_workers": 2, "parallel": parallel, "gradient_accumulation_steps": 3 if parallel == "ddp" else 1}
    options |= {"validation": assigned_mixed[1], "validation_rows": 10}
    assert run(job(assigned_mixed, tiny_turbo, out, **options, **SMALL)) == 0
    assert_same_lines(history(out), history(undisturbed), 1e-3)
    assert_same_lines(history(out, "validation"), history(undisturbed, "validation"), 1e-3)
    assert_same_weights(out / "checkpoint-final", undisturbed / "checkpoint-final", 1e-3)


def test_noise_is_matched_again_at_every_size(assigned_mixed, tiny_turbo, tmp_path):
    options = {"noise": "online", "match_steps": "2", "match_refresh": 0.3, "match_keep": "latest"}
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, workers in zip(outs, (0, 2), strict=True):
        assert run(job(assigned_mixed, tiny_turbo, out, num_workers=workers, **options, **SMALL)) == 0
        for line in history(out):
            assert line["match_final"] < line["match_initial"]
    assert_same_lines(history(outs[1]), history(outs[0]), 5e-3)


def test_pairs_alone_are_trained_on_at_the_sizes_of_the_options(assigned_mixed, tiny_turbo, tmp_path):
    options = {**SMALL, "assignments": None, "pairs": assigned_mixed[0], "noise": "random", "buckets": BUCKETS}
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, workers in zip(outs, (0, 2), strict=True):
        assert run(job(assigned_mixed, tiny_turbo, out, num_workers=workers, **options)) == 0
        assert len(history(out)) == 6
    assert_same_lines(history(outs[1]), history(outs[0]), 1e-3)
    latest = {"noise": "online", "match_steps": "1", "match_refresh": 0.5, "match_keep": "latest"}
    assert run(job(assigned_mixed, tiny_turbo, tmp_path / "latest", num_workers=2, **{**options, **latest})) == 0
    assert len(history(tmp_path / "latest")) == 6
    with pytest.raises(UserError, match="--parallel fsdp: pairs without assignments"):
        run(job(assigned_mixed, tiny_turbo, tmp_path / "out", parallel="fsdp", num_workers=2, **options))


def test_sizes_other_than_those_of_the_assignments_are_refused(assigned_mixed, assigned, tiny_turbo, tmp_path):
    for options, said in (
        ({"size": "32x32"}, f"--size 32x32: .* was made for --buckets {BUCKETS}; leave --size out"),
        ({"buckets": "auto"}, f"--buckets auto: .* was made for --buckets {BUCKETS}"),
        ({"max_crop": 0.5}, "--max-crop 0.5: .* was made for"),
        ({"validation": assigned[1]}, "was made for the model's own size, and the training images have --buckets"),
    ):
        with pytest.raises(UserError, match=said):
            planned(job(assigned_mixed, tiny_turbo, tmp_path / "out", **options, **SMALL))
    with pytest.raises(UserError, match="--batch-size: 32 is more than the 22 assigned rows"):
        planned(job(assigned_mixed, tiny_turbo, tmp_path / "out", **{**SMALL, "batch_size": 32}))


def test_every_held_out_row_counts_once_and_all_workers_call_the_model_alike(assigned_mixed):
    held = Assignments(assigned_mixed[1])
    for world in (1, 2, 3):
        mine = [validated_rows(held, 13, rank, world, False) for rank in range(world)]
        counted = [row for groups in mine for rows, count in groups for row in rows[:count]]
        assert sorted(counted) == [22 * k // 13 for k in range(13)]
        assert len({tuple(len(rows) for rows, _ in groups) for groups in mine}) == 1
    assert validated_rows(held, 13, 1, 3, True) == [([4, 5, 6, 7], None)]


def test_the_mean_of_the_noise_is_that_of_all_sizes(assigned_mixed, tiny_turbo, tmp_path):
    _, data = planned(job(assigned_mixed, tiny_turbo, tmp_path / "out", **SMALL))
    mean = mean_noise(data.source, data)
    assert mean.shape == (4, 8, 8)
    assert 0.05 < float((mean**2).mean() ** 0.5) < 0.5
