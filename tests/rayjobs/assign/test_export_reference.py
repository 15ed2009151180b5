"""`ortho export`: every sample once, killed midway, and into folders of other runs."""

import json
import os
import shutil

import pytest
import torch
import yaml

from ortho_core.errors import UserError
from ortho_core.records.assignments import Assignments
from rayjobs.assign.export_reference import run
from rayjobs.assign.reference_config import ExportJob
from tests.rayjobs.assign.reference import SCALE, SHAPE, export, files, reference_folder, take
from tests.rayjobs.same import replanned


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


def test_a_kill_midway_is_resumed_with_what_is_missing(exported, assigned, tiny_turbo, tmp_path, capsys, left_aside):
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    samples = sorted((out / "samples").iterdir())
    (out / "manifest.jsonl").unlink()
    for folder in samples[10:]:
        shutil.rmtree(folder)
    (samples[9] / "meta.json").unlink()
    left_aside(samples[9] / "meta.json")
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
    other = replanned(assigned[1], tmp_path / "other", pairs_fingerprint="0" * 16)
    now = Assignments(other).plan.run_fingerprint
    with pytest.raises(UserError, match=rf"another run.*assignments was '\w+', now '{now}'$"):
        run(ExportJob(assignments=other, model=tiny_turbo, out=exported))
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
    assert "samples/000002_x belongs to row 2 ('000002_x') and to row 3 ('000002_x')" in error
    assert not (tmp_path / "out/manifest.jsonl").exists()


def test_a_dry_run_tells_and_writes_nothing(assigned, tiny_turbo, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(assigned, tiny_turbo, out, "--dry-run") == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["rows"], said["files"], said["noise_scale"]) == (24, 50, pytest.approx(SCALE, abs=1e-4))
    assert not out.exists()
