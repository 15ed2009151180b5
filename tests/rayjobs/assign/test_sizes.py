"""The E-step over pictures of several shapes, each at the size that crops it least."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ortho_core.errors import UserError
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.rows import PairRows
from ortho_core.framing.frame import Frame
from ortho_core.generators.base import at_size
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.assignments import Assignments
from ortho_core.storage.open import open_store
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import describe, opened, run
from tests.chromium import check_source
from tests.conftest import BUCKETS, mixed_pairs
from tests.rayjobs.same import assert_same, rows

pytestmark = pytest.mark.usefixtures("ray_session")
SIZES = ((40, 24), (32, 32), (24, 40))
SETTINGS = {"steps": 2, "rows_per_shard": 11, "slots": 4, "cpus_per_worker": 0.5, "report": False, "buckets": BUCKETS}


def job(pairs, model, out, **options):
    return AssignJob(**{**SETTINGS, "pairs": pairs, "model": model, "out": out, **options})


def test_each_record_has_the_frame_of_its_picture_and_noise_of_its_shape(assigned_mixed, generator):
    pairs, out = assigned_mixed
    assignments = Assignments(out)
    framing = assignments.plan.framing((32, 32))
    assert framing.sizes == SIZES
    found = assignments.rows(range(22), ["sample_id", "image", "initial_loss", "loss"])
    for row, frame in zip(found, assignments.frames(range(22)), strict=True):
        with Image.open(pairs / row["image"]) as picture:
            assert frame == framing.frame(*picture.size, row["sample_id"])
        assert row["loss"] <= row["initial_loss"]
    by_size = assignments.by_size((32, 32))
    assert sum(map(len, by_size.values())) == 22
    for size, runs in by_size.items():
        index = runs.rows(range(len(runs))).tolist()
        assert {frame.size for frame in assignments.frames(index)} == {size}
        # The checksums of the records are compared.
        shape = at_size(generator, size).latent_shape
        assert assignments.noise(index, shape).shape == assignments.targets(index, shape).shape == (len(index), *shape)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_rays_workers_and_a_resumed_run_leave_the_same_bits(assigned_mixed, tiny_turbo, tmp_path, workers):
    pairs, out = assigned_mixed
    again = tmp_path / "out"
    assert run(job(pairs, tiny_turbo, again, workers=workers)) == 0
    assert_same(rows(again), rows(out), 0.0, 0.0)
    parts = sorted(again.glob("part-*"))
    parts[1].unlink()
    (again / "summary.json").unlink()
    assert run(job(pairs, tiny_turbo, again, workers=workers)) == 0
    assert_same(rows(again), rows(out), 0.0, 0.0)


def test_a_row_s_noise_does_not_depend_on_the_other_sizes(assigned_mixed, tiny_turbo, tmp_path):
    """At one of the sizes alone, the rows that have it find the same."""
    pairs, out = assigned_mixed
    alone = tmp_path / "out"
    options = {"buckets": None, "size": "24x40", "micro_conditioning": "image"}
    assert run(job(pairs, tiny_turbo, alone, workers="0", **options)) == 0
    mixed = {name: row for name, row in rows(out).items() if row["height"] == 40}
    one = {name: row for name, row in rows(alone).items() if name in mixed}
    for each in (*mixed.values(), *one.values()):
        del each["config_fingerprint"]
    assert len(mixed) > 5
    assert_same(one, mixed, 0.0, 0.0)


def test_what_the_model_is_told_of_a_picture_is_its_own_frame(assigned_mixed, tiny_turbo, generator):
    pairs, out = assigned_mixed
    framing = Assignments(out).plan.framing((32, 32))
    objective = Reconstruction(generator, job(pairs, tiny_turbo, "unused"))
    opened_pairs = PairSet(pairs)
    (shard,) = opened_pairs.shards(22)
    for tells in (True, False):
        told = PairRows(objective, PromptCache(generator), opened_pairs, False, framing=framing)
        told.framing = type(framing)(framing.sizes, most_lost=0.34, tells_frames=tells)
        seen = 0
        for batch in told.batches(shard, [], None):
            ids = batch.inputs["condition.time_ids"].tolist()
            frames = [pair.frame if tells else Frame.plain(pair.frame.size) for pair in batch.pairs]
            assert ids == [list(map(float, frame)) for frame in frames]
            assert {pair.frame.size for pair in batch.pairs} == {batch.size}
            seen += len(ids)
        assert seen == 22


def test_it_is_said_before_the_work_what_the_crop_takes(assigned_mixed, tiny_turbo, tmp_path, capfd):
    pairs, _ = assigned_mixed
    assert run(job(pairs, tiny_turbo, tmp_path / "out", workers="0")) == 0
    said = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("images, "))
    assert said == (
        "images, 22 pictures looked at: 3 sizes of about 32x32 pixels (24x40 8, 32x32 9, 40x24 5); the crop cuts off 2% of a "
        "picture on average, 12% at most; one square would cut off 26%"
    )
    assert run(job(pairs, tiny_turbo, tmp_path / "one", workers="0", buckets=None)) == 0
    said = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("images, "))
    assert said.endswith(
        "the crop cuts off 26% of a picture on average, 40% at most to 32x32; --buckets auto cuts off less"
    )
    assert run(job(pairs, tiny_turbo, tmp_path / "large", workers="0", buckets="48x80,64x64,80x48")) == 0
    assert "; 22 pictures are smaller and are enlarged, up to 1.5 times" in capfd.readouterr().err


def test_a_picture_that_is_too_long_for_all_sizes_is_quarantined(digits, tiny_turbo, tmp_path):
    pairs = mixed_pairs(digits, tmp_path / "pairs", 12)
    Image.new("RGB", (300, 60)).save(pairs / "images" / "0004.png")
    out = tmp_path / "out"
    assert run(job(pairs, tiny_turbo, out, workers="0")) == 3
    (failure,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert failure["reason"] == "too-extreme"
    assert (
        "0004.png is 300×60, and the nearest size, 40×24, would cut off 67% of it; accepted: 34%" in failure["message"]
    )
    assert len(Assignments(out)) == 11
    assert run(job(pairs, tiny_turbo, tmp_path / "all", workers="0", max_crop=0.7)) == 0


def test_the_options_of_a_search_work_at_several_sizes(assigned_mixed, tiny_turbo, tmp_path, generator):
    pairs, out = assigned_mixed
    free = {"transform": "free", "candidates": 2, "store": "noise", "crop": "random", "pixel_l1_weight": 0.2}
    first = tmp_path / "first"
    assert run(job(pairs, tiny_turbo, first, workers="0", report=True, **free)) == 0
    assert check_source(first / "report.html") > 20
    assignments = Assignments(first)
    assert assignments.plan.framing((32, 32)).crop == "random"
    for size, runs in assignments.by_size((32, 32)).items():
        index = runs.rows(range(len(runs))).tolist()
        assert assignments.noise(index, at_size(generator, size).latent_shape).isfinite().all()
    # A warm start continues: it is no worse than where it starts.
    second = tmp_path / "second"
    assert run(job(pairs, tiny_turbo, second, workers="0", warm_start=first, **free)) == 0
    before, after = rows(first), rows(second)
    assert all(
        after[name]["initial_loss"] == pytest.approx(row["loss"], rel=0.05, abs=0.02) for name, row in before.items()
    )
    with pytest.raises(UserError, match="sizes was"):
        run(job(pairs, tiny_turbo, tmp_path / "third", warm_start=first, **{**free, "buckets": "32x32,40x24"}))
    assert out.is_dir()


def test_assignments_of_several_sizes_are_exported(assigned_mixed, tiny_turbo, tmp_path):
    from rayjobs.assign.export_reference import run as export
    from rayjobs.assign.reference_config import ExportJob

    _, out = assigned_mixed
    assert export(ExportJob(assignments=out, model=tiny_turbo, out=tmp_path / "reference")) == 0
    shapes = set()
    for file in (tmp_path / "reference").rglob("best_input_noise.pt"):
        shapes.add(tuple(torch.load(file, weights_only=True).shape[-2:]))
    assert shapes == {(10, 6), (8, 8), (6, 10)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buckets": "24x42,32x32"}, "--buckets 24x42: both sides must be multiples of 8, for the autoencoder"),
        ({"buckets": "24x40,32x36", "patch_size": 4}, "--buckets 24x40: both sides must be multiples of 16"),
        ({"size": "32"}, "--size is one size for all images: leave out either --size or --buckets"),
        ({"resolution": 48}, "--resolution is the area of automatic sizes, and --buckets lists sizes"),
        ({"buckets": "none", "crop": "none"}, "--crop none stretches every picture to one shape"),
        ({"buckets": "auto", "resolution": 6}, "--resolution 6: sides must be multiples of 8 pixels"),
        (
            {"buckets": ",".join(f"{8 * k}x48" for k in range(2, 40)), "compile": True},
            "--compile makes a graph for each of the 38",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(assigned_mixed, tiny_turbo, tmp_path, options, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        run(job(assigned_mixed[0], tiny_turbo, tmp_path / "out", **options))
    assert not Path(tmp_path / "out").exists()


def test_one_size_by_its_resolution_is_that_size(assigned_mixed, tiny_turbo, tmp_path):
    pairs, _ = assigned_mixed
    plain = {"buckets": None, "steps": 1, "workers": "0"}
    for name, options in {
        "a": {"size": "48"},
        "b": {"resolution": 48},
        "c": {"resolution": 48, "buckets": "none"},
    }.items():
        assert run(job(pairs, tiny_turbo, tmp_path / name, **{**plain, **options})) == 0
    plans = [Assignments(tmp_path / name).plan for name in "abc"]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].config["size"] == "48x48"
    # Without any of the options the plan is that of before.
    assert run(job(pairs, tiny_turbo, tmp_path / "d", **plain)) == 0
    config = json.loads(open_store(tmp_path / "d").read("plan.json"))["config"]
    assert config["size"] is None
    assert not {"sizes", "crop", "buckets", "most_lost", "tells_frames", "resolution"} & config.keys()


def test_a_dry_run_plans_the_memory_of_all_sizes(assigned_mixed, tiny_turbo, tmp_path):
    pairs, _ = assigned_mixed
    model, framing = opened(job(pairs, tiny_turbo, tmp_path / "out"))
    assert (model.image_size, framing.main) == ((32, 32), (32, 32))
    plans = [
        describe(job(pairs, tiny_turbo, tmp_path / "out", gpu_memory=8, buckets=buckets))["memory"]
        for buckets in (BUCKETS, "none")
    ]
    assert plans[0]["gib_per_slot"] >= plans[1]["gib_per_slot"]
    assert describe(job(pairs, tiny_turbo, tmp_path / "out", gpu_memory=8))["config"]["sizes"] == BUCKETS.split(",")
