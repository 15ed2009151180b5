"""`ortho export` and `ortho import`: there and back, killed midway, and from folders that others made."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ortho_core.errors import UserError
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.mstep.data import to_batch
from ortho_core.noise.seeded import seeded_normal
from ortho_core.records.assignments import Assignments
from rayjobs.assign.export_reference import ExportJob
from rayjobs.assign.export_reference import run as run_export
from rayjobs.cli import main
from rayjobs.train.config import TrainJob
from rayjobs.train.job import make_plan

SHAPE = (4, 8, 8)
SCALE = 14.61464


def export(assigned, model, out, *more):
    return main(["export", "--assignments", str(assigned[1]), "--model", str(model), "--out", str(out), *more])


def take(samples, model, out, *more):
    return main(["import", "--samples", str(samples), "--model", str(model), "--out", str(out), *map(str, more)])


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()
    }


def failures(out):
    return {f["sample_id"]: f["reason"] for f in map(json.loads, (out / "failures.jsonl").read_text().splitlines())}


@pytest.fixture(scope="module")
def exported(assigned, tiny_turbo, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    assert export(assigned, tiny_turbo, out) == 0
    return out


def test_the_export_has_every_sample_once_and_a_manifest(exported, assigned):
    assignments = Assignments(assigned[1])
    entries = [json.loads(line) for line in (exported / "manifest.jsonl").read_text().splitlines()]
    records = assignments.rows(range(24), ["sample_id", "prompt", "image", "loss"])
    assert [{k: e[k] for k in ("id", "prompt", "image")} for e in entries] == [
        {"id": r["sample_id"], "prompt": r["prompt"], "image": r["image"]} for r in records
    ]
    assert len(files(exported)) == 2 * 24 + 2
    for row, (entry, record) in enumerate(zip(entries, records, strict=True)):
        assert entry["noise"] == f"samples/{entry['id']}/best_input_noise.pt"
        noise = torch.load(exported / entry["noise"], weights_only=True)
        assert (noise.shape, noise.dtype) == ((1, *SHAPE), torch.float32)
        torch.testing.assert_close(noise / SCALE, assignments.noise([row], SHAPE), rtol=0, atol=1e-5)
        meta = json.loads((exported / entry["meta"]).read_text())
        assert (meta["prompt"], meta["loss"], meta["row"]) == (record["prompt"], pytest.approx(record["loss"]), row)
        assert os.path.getsize(exported / entry["noise"]) < 4 * 256 + 4096  # its own noise, not its whole batch's


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
    plan, data = make_plan(job)
    assert (plan["rows"], data.pairs.location) == (24, str(assigned[0]))
    batch = to_batch(data.share(0, 0), generator, PromptCache(generator), data.needs_images)
    index = data.order.share(0, 0).tolist()
    torch.testing.assert_close(batch.noise, there.noise(index, SHAPE), rtol=0, atol=1e-6)
    # Images are encoded again, in batches of another size.
    torch.testing.assert_close(batch.target_latents, there.targets(index, SHAPE), rtol=0, atol=1e-4)


def test_a_kill_midway_is_resumed_with_what_is_missing(exported, assigned, tiny_turbo, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    samples = sorted((out / "samples").iterdir())
    (out / "manifest.jsonl").unlink()
    for folder in samples[10:]:
        shutil.rmtree(folder)
    (samples[9] / "meta.json").unlink()
    (samples[9] / ".meta.json.0.partial").write_text("{")
    (samples[8] / "best_input_noise.pt").unlink()
    before = files(out)
    assert export(assigned, tiny_turbo, out) == 0
    assert "24 samples" in (said := capsys.readouterr().err)
    assert "16 of them written now" in said
    after = files(out)
    assert {name: size for name, (size, _) in after.items() if name != "manifest.jsonl"} == {
        name: size for name, (size, _) in files(exported).items() if name != "manifest.jsonl"
    }
    untouched = {n for n in before if n in after and before[n] == after[n]}
    assert len(untouched) == 2 * 8 + 1  # eight whole samples and the plan
    assert export(assigned, tiny_turbo, out) == 0  # complete: nothing is touched
    assert files(out) == after


def test_other_assignments_or_a_strangers_folder_are_refused(exported, assigned, tiny_turbo, tmp_path, capsys):
    assert export(assigned, tiny_turbo, exported, "--noise-scale", "2") == 1
    assert "noise_scale was 14.61" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(assigned[1], other)
    plan = json.loads((other / "plan.json").read_text())
    (other / "plan.json").write_text(json.dumps(plan | {"run_fingerprint": "0" * 16}))
    for part in other.glob("part-*"):
        part.rename(other / part.name.replace(plan["run_fingerprint"], "0" * 16))
    with pytest.raises(UserError, match=r"another run.*assignments was '\w+', now '0000000000000000'$"):
        run_export(ExportJob(assignments=other, model=tiny_turbo, out=exported))
    for stranger in ("manifest.jsonl", "samples/x/meta.json"):
        folder = tmp_path / stranger.replace("/", "-")
        (folder / stranger).parent.mkdir(parents=True)
        (folder / stranger).write_text("{}")
        assert export(assigned, tiny_turbo, folder) == 1
        assert "is not empty and was not made by `ortho export`" in capsys.readouterr().err
        assert not (folder / "plan.json").exists()


def test_two_samples_of_one_id_are_not_written_over_each_other(digits, tiny_turbo, tmp_path, capsys):
    again = {"id": "000002_x", "prompt": "other", "target_image_path": "samples/000000_x/x.png"}
    samples = reference_folder(tmp_path / "r", digits, 3, [again])
    assert take(samples, tiny_turbo, tmp_path / "a") == 0
    assert export((None, tmp_path / "a"), tiny_turbo, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "samples/000002_x is of row 2 ('000002_x') and of row 3 ('000002_x')" in error
    assert not (tmp_path / "out/manifest.jsonl").exists()


def test_dry_runs_tell_and_write_nothing(exported, assigned, tiny_turbo, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(assigned, tiny_turbo, out, "--dry-run") == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["rows"], said["files"], said["noise_scale"]) == (24, 50, pytest.approx(SCALE, abs=1e-4))
    assert take(exported, tiny_turbo, out, "--pairs", assigned[0], "--dry-run") == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["rows"], said["shards"], said["images_in"]) == (24, 1, str(assigned[0]))
    assert not out.exists()


def reference_folder(folder, digits, rows=6, extra=(), **fields):
    """Rows with the least that the reference always writes: ids, prompts, noise and a copy of the image."""
    lines = []
    for i in range(rows):
        name = f"{i:06d}_x"
        (folder / "samples" / name).mkdir(parents=True)
        torch.save(SCALE * seeded_normal([i], SHAPE), folder / "samples" / name / "best_input_noise.pt")
        shutil.copy(digits / "images" / f"{i:04d}.png", folder / "samples" / name / "x.png")
        entry = {"sample_id": name, "prompt": f"prompt {i}", "target_image_path": f"{folder}/samples/{name}/x.png"}
        lines.append(entry | fields)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *extra]))
    return folder


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
    _, data = make_plan(TrainJob(assignments=out, model=tiny_turbo, out=tmp_path / "t", batch_size=2))
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
        ((samples, tmp_path, out), "is not a model folder"),
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
