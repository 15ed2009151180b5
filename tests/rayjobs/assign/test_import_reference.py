"""`ortho import`: of what `ortho export` wrote, and of folders that others made."""

import json
import os

import numpy as np
import pytest
import torch
import yaml

from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.mstep.data import to_batch
from ortho_core.noise.seeded import seeded_normal
from ortho_core.records.assignments import Assignments
from rayjobs.train.config import TrainJob
from rayjobs.train.job import make_plan
from rayjobs.train.models import TrainModels
from tests.rayjobs.assign.reference import SCALE, SHAPE, export, files, reference_folder, take


def failures(out):
    return {f["sample_id"]: f["reason"] for f in map(json.loads, (out / "failures.jsonl").read_text().splitlines())}


@pytest.mark.parametrize("scale", [(), ("--noise-scale", "1")])
def test_there_and_back_is_the_same_noise_and_trains(assigned, tiny_turbo, tmp_path, generator, scale):
    samples, out = tmp_path / "samples", tmp_path / "back"
    assert export(assigned, tiny_turbo, samples, *scale) == 0
    assert take(samples, tiny_turbo, out, "--pairs", assigned[0]) == 0
    there, back = Assignments(assigned[1]), Assignments(out)
    index = range(len(there))
    torch.testing.assert_close(back.noise(index, SHAPE), there.noise(index, SHAPE), rtol=0, atol=1e-6)
    same = ["sample_id", "prompt", "image", "noise_seed", "patch_size", "loss", "initial_loss", "drift", "evaluations"]
    assert back.rows(index, same) == there.rows(index, same)
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (assigned[1], out))
    for name in ("rows", "assigned", "quarantined", "evaluations"):
        assert other[name] == one[name]
    assert other["mean_loss"] == pytest.approx(one["mean_loss"])
    job = TrainJob(assignments=out, model=tiny_turbo, out=tmp_path / "t", batch_size=8, pixel_l1_weight=0.0)
    plan, data = make_plan(job, TrainModels.open(job))
    assert (plan.rows, data.pairs.location) == (24, str(assigned[0]))
    batch = to_batch(data.share(0, 0), generator, PromptCache(generator), data.needs_images)
    index = data.order.share(0, 0).tolist()
    torch.testing.assert_close(batch.noise, there.noise(index, SHAPE), rtol=0, atol=1e-6)
    # Images are encoded again, in batches of another size.
    torch.testing.assert_close(batch.target_latents, there.targets(index, SHAPE), rtol=0, atol=1e-4)


def test_a_folder_with_the_least_in_it_is_imported_with_its_own_images(digits, tiny_turbo, tmp_path):
    samples, out = reference_folder(tmp_path / "r", digits), tmp_path / "out"
    assert take(samples, tiny_turbo, out) == 0
    assignments = Assignments(out)
    torch.testing.assert_close(assignments.noise(range(6), SHAPE), seeded_normal(list(range(6)), SHAPE))
    row = assignments.rows([3], ["sample_id", "image", "noise_seed", "regions", "skew", "loss", "target_latent"])[0]
    assert (row.pop("sample_id"), row.pop("image")) == ("000003_x", "samples/000003_x/x.png")
    assert row == {"noise_seed": 0, "regions": 0, "skew": None, "loss": None, "target_latent": None}
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["assigned"], summary["mean_loss"], summary["evaluations"]) == (6, None, 0)
    job = TrainJob(assignments=out, model=tiny_turbo, out=tmp_path / "t", batch_size=2)
    _, data = make_plan(job, TrainModels.open(job))
    assert data.pairs.fetch_image("samples/000003_x/x.png", "row 3") == (digits / "images/0003.png").read_bytes()


@pytest.mark.parametrize("shards", [1, 3])
def test_bad_rows_are_quarantined_and_the_rest_is_imported(digits, tiny_turbo, tmp_path, shards, monkeypatch, capsys):
    monkeypatch.setattr("rayjobs.assign.import_reference.ROWS_PER_SHARD", -(-13 // shards))
    marker, secret = tmp_path / "ran", tmp_path / "secret.pt"
    torch.save(SCALE * seeded_normal([0], SHAPE), secret)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    good = {"prompt": "p", "target_image_path": "samples/000000_x/x.png"}
    wrong = {"up": "../secret.pt", "absolute": str(secret), "link": "link.pt", "pickle": "evil.pt", "nan": "nan.pt"}
    extra = [{"id": name, "noise": noise, **good} for name, noise in wrong.items()]
    extra += [{"id": "shape", "noise": "shape.pt", **good}, {"id": "image", **good, "target_image_path": "no.png"}]
    extra[-1]["noise"] = "samples/000000_x/best_input_noise.pt"
    samples, out = reference_folder(tmp_path / "r", digits, 6, extra), tmp_path / "out"
    (samples / "link.pt").symlink_to(secret)
    torch.save({"noise": SCALE * seeded_normal([0], SHAPE), "x": Evil()}, samples / "evil.pt")
    torch.save(torch.full(SHAPE, float("nan")), samples / "nan.pt")
    torch.save(torch.zeros(4, 8, 9), samples / "shape.pt")
    assert take(samples, tiny_turbo, out) == 3
    assert failures(out) == {
        **dict.fromkeys(("up", "absolute", "link"), "outside-root"),
        "pickle": "unreadable-noise",
        "nan": "non-finite-noise",
        "shape": "wrong-shape",
        "image": "missing-image",
    }
    assert not marker.exists()
    assert len(Assignments(out)) == 6
    # Resumed after a kill, it is the same; complete, it is left alone.
    before, noise = files(out), Assignments(out).noise(range(6), SHAPE)
    assert len([n for n in before if n.startswith("part-")]) == shards
    for gone in [out / "summary.json", sorted(out.glob("part-*"))[-1]]:
        gone.unlink()
    assert take(samples, tiny_turbo, out) == 3
    assert files(out).keys() == before.keys()
    assert torch.equal(Assignments(out).noise(range(6), SHAPE), noise)
    assert len(failures(out)) == 7
    assert take(samples, tiny_turbo, out) == 3
    assert "is complete" in capsys.readouterr().err


def test_images_that_are_links_or_not_there_ask_for_the_pair_set(
    digits, exported, assigned, tiny_turbo, tmp_path, capsys
):
    samples = reference_folder(tmp_path / "r", digits, 2, source_rel_image_path="images/0001.png")
    for name in ("000000_x", "000001_x"):
        (samples / "samples" / name / "x.png").unlink()
        (samples / "samples" / name / "x.png").symlink_to(digits / "images/0001.png")
    assert take(samples, tiny_turbo, tmp_path / "a") == 1
    assert "none of the 2 rows could be imported; see" in capsys.readouterr().err
    assert set(failures(tmp_path / "a").values()) == {"outside-root"}
    assert "--pairs names the pair set" in (tmp_path / "a/failures.jsonl").read_text()
    assert take(samples, tiny_turbo, tmp_path / "b", "--pairs", digits) == 0
    assert Assignments(tmp_path / "b").rows([0], ["image"]) == [{"image": "images/0001.png"}]
    assert take(exported, tiny_turbo, tmp_path / "c", "--image-root", assigned[0]) == 0
    assert take(exported, tiny_turbo, tmp_path / "d") == 1


def test_what_cannot_work_is_refused_before_anything_is_written(digits, tiny_turbo, tmp_path, capsys):
    samples, out = reference_folder(tmp_path / "r", digits, 2), tmp_path / "out"
    for argv, says in (
        ((tmp_path, tiny_turbo, out), "no manifest.jsonl in it"),
        ((samples, samples, out), "is not a model folder"),
        ((samples, tiny_turbo, out, "--pairs", "nowhere"), "no pair set at "),
        ((samples, tiny_turbo, out, "--noise-scale", "0"), "--noise-scale: '0' is not accepted"),
        ((samples, tiny_turbo, out, "--noise-scale", "inf"), "--noise-scale: 'inf' is not accepted"),
    ):
        assert take(*argv) == 1
        assert says in capsys.readouterr().err
    assert not out.exists()
    assert take(samples, tiny_turbo, out) == 0
    torch.save(np.float64(1), samples / "x.pt")
    (samples / "manifest.jsonl").write_text('{"id": 1}\n')
    assert take(samples, tiny_turbo, out) == 1
    assert "holds the output of another run" in capsys.readouterr().err


def test_a_dry_run_tells_and_writes_nothing(exported, assigned, tiny_turbo, tmp_path, capsys):
    out = tmp_path / "out"
    assert take(exported, tiny_turbo, out, "--pairs", assigned[0], "--dry-run") == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["rows"], said["shards"], said["images_in"]) == (24, 1, str(assigned[0]))
    assert not out.exists()
