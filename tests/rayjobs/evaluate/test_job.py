"""`ortho evaluate`: two models over a few held-out rows, two of which are of no use."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ortho_core.errors import RunFailed, UserError
from ortho_core.evaluation.metrics import METRICS
from ortho_core.evaluation.samples import from_png, rms_distance
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.pictures import load_sheet
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.evaluate.figures import table_of
from rayjobs.evaluate.job import describe, run
from rayjobs.evaluate.plan import PARTS
from rayjobs.reports.summaries import Evaluation
from tests.conftest import ROOT, copy_pairs

ROWS, BAD = 20, 2


@pytest.fixture(scope="module")
def moved(tiny_turbo, tmp_path_factory):
    """The base model with other weights in its network, and the same text encoder."""
    generator = load_generator(ModelFolder.open(tiny_turbo))
    weights = parameters_to_vector(generator.trainable.parameters())
    noise = torch.randn(len(weights), generator=torch.Generator().manual_seed(0))
    vector_to_parameters(weights + 0.3 * weights.std() * noise, generator.trainable.parameters())
    folder = tmp_path_factory.mktemp("moved") / "model"
    generator.save(folder)
    return folder


@pytest.fixture(scope="module")
def heldout(digits, tmp_path_factory):
    """Twenty rows: the second has no prompt, the image of the twelfth is none."""
    folder = copy_pairs(digits, tmp_path_factory.mktemp("heldout") / "pairs", ROWS)
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    lines[1]["prompt"] = " "
    (folder / lines[11]["image"]).write_bytes(b"no picture")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def job(models, pairs, out, **options):
    usual = {"steps": 3, "rows_per_shard": 8, "batch_size": 8, "cpus_per_worker": 0.5}
    return EvaluateJob(**{**usual, "model": models, "pairs": str(pairs), "out": out, **options})


def here(one):
    """The job in this process, without Ray; its result."""
    run(one.model_copy(update={"workers": "0"}))
    return result_of(one.out)


def opened(file):
    return from_png(file.read_bytes())


def energy(picture):
    """The mean square of scipy's Laplacian of the luminance, away from the edge."""
    luma = np.tensordot([0.299, 0.587, 0.114], picture / 255, 1)
    return (ndimage.laplace(luma)[1:-1, 1:-1] ** 2).mean()


def result_of(out):
    return json.loads((out / "evaluation.json").read_text())


def values_of(result):
    return {(m, k): figure["value"] for m, figures in result["metrics"].items() for k, figure in figures.items()}


@pytest.fixture(scope="module")
def done(tiny_turbo, moved, heldout, tmp_path_factory, ray_session):
    out = tmp_path_factory.mktemp("evaluated") / "out"
    assert run(job({"base": tiny_turbo, "moved": moved}, heldout, out)) == 3
    return out


def test_every_figure_has_an_interval_and_a_count(done):
    result = result_of(done)
    assert (result["base"], result["rows"], result["quarantined"]) == ("base", ROWS - BAD, BAD)
    names = [name for name in METRICS if name != "lpips"]
    assert list(result["metrics"]["moved"]) == [*names, "reward_clip"]
    assert list(result["metrics"]["base"]) == [*(name for name in names if name != "drift"), "reward_clip"]
    for figures in result["metrics"].values():
        for name, figure in figures.items():
            assert figure["low"] <= figure["value"] <= figure["high"], name
            assert figure["count"] == (8 if name == "diversity" else ROWS - BAD)
    base, moved = result["metrics"].values()
    assert moved["drift"]["low"] > 0
    # The base model is as far from its own samples at other noise as chance has it.
    assert base["kid_base"]["low"] < 0 < base["kid_base"]["high"]
    assert base["cmmd_base"]["low"] < 0 < base["cmmd_base"]["high"]
    features = result["features"]
    assert (features["name"], features["dimension"], features["cmmd"]["dimension"]) == ("tiny-clip", 64, 64)
    assert features["fingerprint"] == result["rewards"]["clip"]
    text = table_of(Evaluation.read(done / "evaluation.json").metrics)
    assert "KID to base ↓" in text
    assert f"[{base['psnr']['low']:.3g}, {base['psnr']['high']:.3g}]" in text


def test_rows_are_judged_or_quarantined_once_and_kept_one_by_one(done):
    failures = [json.loads(line) for line in (done / "failures.jsonl").read_text().splitlines()]
    assert [(f["row"], f["reason"]) for f in failures] == [(1, "missing-prompt"), (11, "undecodable-image")]
    table = pq.read_table(done / "evaluation.parquet").to_pylist()
    ids = {model: [row["sample_id"] for row in table if row["model"] == model] for model in ("base", "moved")}
    assert ids["base"] == ids["moved"]
    assert len(set(ids["base"])) == ROWS - BAD
    assert all(row["lpips"] is None for row in table)
    result = result_of(done)
    for model in ids:
        rows = [row for row in table if row["model"] == model]
        for name in ("latent_mse", "psnr", "ssim", "reward_clip"):
            assert np.mean([row[name] for row in rows]) == pytest.approx(
                result["metrics"][model][name]["value"], rel=1e-5
            )
    # The drift is that between the pictures.
    size = tuple(result["image_size"])
    sheets = {m: load_sheet(done / "pictures" / f"{m}-samples.png", size)[: ROWS - BAD] for m in ids}
    drift = [row["drift"] for row in table if row["model"] == "moved"]
    assert drift == pytest.approx(rms_distance(sheets["moved"], sheets["base"]).tolist(), rel=1e-5)
    # And the sharpness that of the samples' pictures over the targets'.
    sheets["target"] = load_sheet(done / "pictures" / "targets.png", size)[: ROWS - BAD]
    energies = {name: [energy(picture) for picture in sheet.numpy()] for name, sheet in sheets.items()}
    for model in ids:
        rows = [row for row in table if row["model"] == model]
        assert [row["sample_energy"] for row in rows] == pytest.approx(energies[model], rel=1e-5)
        assert [row["target_energy"] for row in rows] == pytest.approx(energies["target"], rel=1e-5)
        expected = np.mean(energies[model]) / np.mean(energies["target"])
        assert result["metrics"][model]["sharpness"]["value"] == pytest.approx(expected, rel=1e-5)


def test_the_sheets_show_the_judged_rows(done, heldout):
    sheets = {file.name: opened(file) for file in (done / "pictures").iterdir()}
    names = ["targets", *(f"{m}-{kind}" for m in ("base", "moved") for kind in ("closest", "samples", "others"))]
    assert {name: tuple(sheet.shape) for name, sheet in sheets.items()} == {
        f"{name}.png": (3, 64, 512) for name in names
    }
    shown = load_sheet(done / "pictures" / "targets.png", (32, 32))[: ROWS - BAD]
    lines = [json.loads(line) for line in (heldout / "pairs.jsonl").read_text().splitlines()]
    usable = [heldout / line["image"] for i, line in enumerate(lines) if i not in (1, 11)]
    assert torch.equal(shown, torch.stack([opened(file) for file in usable]))


def test_what_is_lost_is_made_again_with_the_same_values_and_nothing_else(done, tiny_turbo, moved, heldout):
    before, parts = result_of(done), sorted((done / PARTS).glob("part-*"))
    assert len(parts) == 6
    times = {p: p.stat().st_mtime_ns for p in parts}
    parts[4].unlink()
    (done / "evaluation.json").unlink()
    assert run(job({"base": tiny_turbo, "moved": moved}, heldout, done, workers="1")) == 3
    assert values_of(result_of(done)) == values_of(before)
    assert [p for p in parts if p.stat().st_mtime_ns != times[p]] == [parts[4]]
    with pytest.raises(UserError, match=r"config\.steps was 3, now 4"):
        run(job({"base": tiny_turbo, "moved": moved}, heldout, done, steps=4))


def test_shards_batches_and_workers_change_nothing_but_rounding(done, tiny_turbo, moved, heldout, tmp_path):
    options = {"rows_per_shard": 32, "batch_size": 5, "workers": 0}
    assert run(job({"base": tiny_turbo, "moved": moved}, heldout, tmp_path / "out", **options)) == 3
    expected = values_of(result_of(done))
    found = values_of(result_of(tmp_path / "out"))
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value == pytest.approx(expected[key], rel=2e-2, abs=2e-2), key


def test_the_base_model_of_another_evaluation_is_not_judged_again(done, tiny_turbo, moved, heldout, tmp_path):
    one = job({"base": tiny_turbo, "trial": moved}, heldout, tmp_path / "out", base_from=done)
    assert run(one) == 3
    first, second = (sorted((out / PARTS).glob("part-*")) for out in (done, one.out))
    assert [p.read_bytes() for p in first[:3]] == [p.read_bytes() for p in second[:3]]
    assert list(values_of(result_of(one.out)).values()) == list(values_of(result_of(done)).values())
    with pytest.raises(UserError, match=r"was judged with other settings: config\.steps was 3, now 4"):
        run(job({"base": tiny_turbo, "trial": moved}, heldout, tmp_path / "other", base_from=done, steps=4))
    with pytest.raises(UserError, match=r"was judged with other settings: model was"):
        run(job({"base": moved, "trial": tiny_turbo}, heldout, tmp_path / "another", base_from=done))


def test_a_model_against_itself(tiny_turbo, digits, tmp_path):
    """Rows that are fewer than the set has; no reward."""
    models = {"base": tiny_turbo, "again": tiny_turbo}
    result = here(job(models, digits / "heldout.jsonl", tmp_path / "out", rows=12, rewards=None))
    base, again = result["metrics"].values()
    assert (result["rows"], result["rewards"]) == (12, {})
    assert again["drift"] == {"value": 0, "low": 0, "high": 0, "count": 12}
    assert {k: v for k, v in again.items() if k != "drift"} == base


def test_flat_targets_leave_sharpness_out(tiny_turbo, digits, tmp_path):
    pairs = copy_pairs(digits, tmp_path / "pairs", 8)
    for line in (pairs / "pairs.jsonl").read_text().splitlines():
        Image.new("RGB", (32, 32), (200, 30, 90)).save(pairs / json.loads(line)["image"])
    (figures,) = here(job({"base": tiny_turbo}, pairs, tmp_path / "out"))["metrics"].values()
    assert "sharpness" not in figures
    assert "diversity" in figures
    table = pq.read_table(tmp_path / "out" / "evaluation.parquet").to_pylist()
    assert {row["target_energy"] for row in table} == {0}
    assert all(row["sample_energy"] > 0 for row in table)


def test_a_model_that_breaks_takes_its_rows_out_of_all_figures(tiny_turbo, digits, tmp_path):
    generator = load_generator(ModelFolder.open(tiny_turbo))
    with torch.no_grad():
        next(generator.trainable.parameters()).fill_(torch.nan)
    generator.save(tmp_path / "broken")
    one = job({"base": tiny_turbo, "broken": tmp_path / "broken"}, digits / "heldout.jsonl", tmp_path / "out", rows=8)
    with pytest.raises(RunFailed, match=r"0 of 8 held-out rows were judged with every model.*base 0, broken 8"):
        here(one)


def test_a_shard_without_a_usable_row(tiny_turbo, digits, tmp_path):
    pairs = copy_pairs(digits, tmp_path / "pairs", 12)
    lines = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    for line in lines[4:8]:
        line["prompt"] = None
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = here(job({"base": tiny_turbo}, pairs, tmp_path / "out", rows_per_shard=4))
    assert (result["rows"], result["quarantined"]) == (8, 4)
    table = pq.read_table(tmp_path / "out" / "evaluation.parquet")["sample_id"].to_pylist()
    assert table == [f"{i:06d}_{i:04d}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]


def test_the_plan_says_what_it_takes_and_writes_nothing(tiny_turbo, moved, heldout, tmp_path):
    said = describe(job({"base": tiny_turbo, "moved": moved}, heldout, tmp_path / "out"))
    assert (said["rows"], said["evaluations"], said["shards"]) == (2 * ROWS, 2 * ROWS * 3, 6)
    assert "evaluation.json" in said["writes"]
    assert len(said["diversity_prompts"]) == 8
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patch_size": 5}, "patch_size 5 does not divide"),
        ({"features": "inception"}, "inception.* should hold weights-inception-2015-12-05-6726825d.pth"),
        ({"features": "nowhere"}, "--features nowhere: the folder .* does not exist"),
        ({"cmmd_features": "inception"}, "inception"),
        ({"rewards": "clip,beauty"}, "'beauty' in 'clip,beauty' is unknown"),
        ({"rewards": "clip:2"}, "have no weights here"),
        ({"rewards": "pickscore"}, "reward pickscore: .*put the files of"),
        ({"reward_folders": {"hpsv2": "x"}}, "hpsv2 is not one of --rewards clip"),
        ({"lpips": "nowhere"}, "--lpips nowhere: no alexnet"),
        ({"model": {}}, "--model is empty"),
        ({"model": {"a/b": ROOT / "models" / "tiny-turbo"}}, "'a/b' is not accepted as a name"),
        ({"pairs": "nowhere"}, "no pair set at nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(options, says, tiny_turbo, heldout, tmp_path):
    one = job({"base": tiny_turbo}, heldout, tmp_path / "out").model_copy(update=options)
    with pytest.raises(UserError, match=says):
        run(one)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(done, tiny_turbo, moved, heldout, tmp_path):
    out = tmp_path / "out"
    options = ["--steps", "3", "--rows-per-shard", "8", "--batch-size", "8", "--workers", "1"]
    models = f"base={tiny_turbo},moved={moved}"
    command = [sys.executable, "-m", "rayjobs.evaluate", "--model", models, "--pairs", heldout, "--out", out, *options]
    first = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    while first.poll() is None and len(list((out / PARTS).glob("part-*"))) < 2:
        time.sleep(0.05)
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    made = {p: p.stat().st_mtime_ns for p in (out / PARTS).glob("part-*")}
    assert subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.DEVNULL).returncode == 3
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert values_of(result_of(out)) == values_of(result_of(done))
