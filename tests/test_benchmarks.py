"""The programs behind docs/results run, and count as they say."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from PIL import Image

from benchmarks import mstep
from benchmarks.host_memory import measure
from benchmarks.problem import FORWARD, Curve, Problem
from benchmarks.results import write_results
from benchmarks.rivals import RIVALS, best_of, from_noise, ours
from benchmarks.same_results import content_of, differences
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def problem():
    return Problem.of("imle", ROOT / "examples" / "digits" / "heldout.jsonl", 4, 2, 0)


def run(name, *argv):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_curve_counts_what_was_spent_and_keeps_the_best():
    curve = Curve.of([torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0]), torch.tensor([2.5, 0.5])], before=1 / 3)
    assert curve.cost == pytest.approx([4 / 3, 7 / 3, 10 / 3])
    assert curve.at(2.4).tolist() == [2.0, 1.0]
    assert curve.at(1).tolist() == [float("inf")] * 2
    assert curve.reaches(1.5) == pytest.approx(7 / 3)
    assert curve.reaches(0.1) == float("inf")
    assert curve.each_reaches(torch.tensor([2.0, 0.9])).tolist() == pytest.approx([7 / 3, 10 / 3])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("regressed" in name)) for name in RIVALS]
)
def test_every_search_that_was_tried_lowers_the_loss_and_starts_at_the_base_noise(name, problem):
    curve = RIVALS[name](problem, 24)
    assert (curve.best[-1] < curve.best[0]).all()
    if curve.cost[0] == 1:
        torch.testing.assert_close(curve.best[0], problem.losses(problem.base), rtol=1e-2, atol=1e-3)


def test_candidates_are_paid_for(problem):
    curve = best_of(problem, 6, 3)
    assert curve.cost[0] == pytest.approx(1 + 3 * FORWARD)
    screened = torch.stack([problem.losses(each) for each in (problem.base, *map(problem.random_noise, (1, 2)))])
    torch.testing.assert_close(curve.best[0], screened.amin(0), rtol=1e-2, atol=1e-3)
    same = from_noise(problem, 6, problem.base, 0.0)
    torch.testing.assert_close(same.best[-1], ours(problem, 6).best[-1], rtol=1e-2, atol=1e-4)


def test_the_efficiency_program_writes_its_table(tmp_path):
    argv = ["--images", "4", "--seeds", "1", "--generators", "imle", "--patch-sizes", "2"]
    said = run("estep_efficiency", *argv, "--out", str(tmp_path / "x.json"))
    table = json.loads((tmp_path / "x.json").read_text())["imle, p = 2"]
    assert table["reference"]["reach"] == 40
    assert table["the default"]["reach"] < 20
    assert f"{table['the default']['loss_40']:8.4f}" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_the_gpu_program_says_so_where_there_is_no_gpu():
    assert "no CUDA device, nothing was measured" in run("estep_gpu")


@pytest.mark.slow
def test_the_gpu_program_runs_in_miniature(tmp_path):
    argv = ["--small", "--slots", "1", "2", "--rounds", "1", "--evaluations", "2", "--reference-images", "1"]
    run("estep_gpu", *argv, "--out", str(tmp_path / "x.json"))
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [(row["compile"], row["slots"]) for row in rows] == [(False, 1), (False, 2), (True, 1), (True, 2)]
    assert all(row["images_per_second"] > 0 for row in rows)


def test_the_scale_program_plans_from_footers_alone(tmp_path):
    argv = ["--only", "plan", "--files", "3", "--rows-per-file", "2500", "--out", str(tmp_path / "x.json")]
    run("assign_scale", *argv)
    told = json.loads((tmp_path / "x.json").read_text())["plan of Parquet footers"]
    assert (told["rows"], told["rows_per_shard"], told["shards"]) == (7500, 64, 3 * 40)


@pytest.mark.slow
def test_the_scale_program_runs_in_miniature(tmp_path):
    argv = ["--only", "rows", "--rows", "200", "400", "--out", str(tmp_path / "x.json")]
    run("assign_scale", *argv)
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert (rows["few"]["shards"], rows["many"]["shards"]) == (4, 7)


@pytest.mark.slow
def test_the_program_of_sizes_compares_five_with_one(tmp_path):
    run("buckets", "--rows", "70", "--rounds", "1", "--out", str(tmp_path / "x.json"))
    found = json.loads((tmp_path / "x.json").read_text())
    assert set(found["five over one"]) == {"e_step_steady", "e_step_with_start", "e_step_filled", "m_step"}
    assert all(len(each) == 1 for rates in found["rates"].values() for each in rates.values())
    assert all(crop["mean"] < crop["square"] for crop in found["crops"].values())


@pytest.mark.slow
def test_the_program_of_flow_models_compares_and_plans(tmp_path):
    for only in ("latents", "overhead"):
        run("flows", "--only", only, "--rows", "1", "--rounds", "1", "--out", str(tmp_path / "x.json"))
        rows = json.loads((tmp_path / "x.json").read_text())[only]
        assert {row.get("kind", row.get("model")) for row in rows} >= (
            {"SanaSprintPipeline", "FluxPipeline"} if only == "latents" else {"sana-sprint", "flux"}
        )
        assert all(row.get("difference", 0) < 1e-4 for row in rows)


@pytest.mark.slow
def test_memory_counted_without_numbers_is_that_of_real_tensors():
    from torch._subclasses import FakeTensorMode

    for rank in (0, 4):
        with FakeTensorMode():
            without = mstep.counted_peak(mstep.SMALL, rank, 1)
        assert without == pytest.approx(mstep.counted_peak(mstep.SMALL, rank, 1), rel=0.02)


@pytest.mark.slow
def test_the_training_program_compares_with_what_it_says(tmp_path):
    argv = [
        "--only",
        "parts",
        "matching",
        "reference",
        "--batch-sizes",
        "2",
        "--rounds",
        "1",
        "--out",
        str(tmp_path / "x.json"),
    ]
    run("mstep", *argv)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["parts"]["2"]["over_bare"] > 0
    table = found["matching"]["2"]
    assert table["6_over_matched"] == pytest.approx(table["6"] / table["matched"])
    table = found["reference"]["2"]
    assert table["over_reference"] == pytest.approx(table["images_per_second"] / table["reference_images_per_second"])


def test_the_program_of_the_look_counts_what_was_looked_at(tmp_path):
    argv = ["--rows", "1500", "--files", "40", "--photographs", "3"]
    run("look", *argv, "--out", str(tmp_path / "x.json"))
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures.pop("measured")["command"].startswith("python -m benchmarks.look ")
    assert [(f["rows"], f["looked_at"]) for f in figures.values()] == [(1500, 1000), (20, 20), (3, 3)]
    assert all(figure["seconds"] > 0 for figure in figures.values())


@pytest.mark.slow
def test_the_first_line_program_measures_every_set(tmp_path):
    said = run("first_line", "--scale", "0.001", "--turns", "1", "--against", ".", "--out", str(tmp_path / "x.json"))
    found = json.loads((tmp_path / "x.json").read_text())
    assert found.pop("measured")["command"].startswith("python -m benchmarks.first_line ")
    assert len(said.strip().splitlines()) == 3 + len(found)
    for (turn,) in found.values():
        assert turn["here"]["rows"] == turn["there"]["rows"] >= turn["here"]["read_rows"] > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_half_precision_is_loaded_without_a_copy_in_float32(tmp_path, tiny_turbo):
    """At most a quarter beyond the files: the autoencoder in float32, a layer's sum, buffers. A copy would be twice the files."""
    found = measure("small", tmp_path, tiny_turbo)
    assert found.keys() == {"folder", "LoRA folder, merged", "LoRA folder, adapter apart"}
    for name, row in found.items():
        assert row["on_disk_gb"] > 0.3
        assert 0.9 < row["times"] < 1.25, name


def test_every_record_stands_in_the_results_and_its_program_is_there():
    lines = (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("|") and "`python" in line]
    results = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "results").glob("*.md")))
    assert len(rows) >= 9
    for figure, records, better, _, command in (map(str.strip, row) for row in rows):
        assert better in ("lower", "higher"), figure
        for record in records.split(";"):
            assert re.search(rf"(?<![\d.]){re.escape(record.strip())}(?![\d.]\d)", results), (figure, record)
        module, *options = shlex.split(command.strip("`"))[2:]
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert all(f'"{option}"' in source for option in options if option.startswith("--")), command


def test_results_say_under_which_conditions_they_were_measured(tmp_path, capsys):
    write_results({"ratio": 2.0}, tmp_path / "runs" / "x.json")
    written = json.loads((tmp_path / "runs" / "x.json").read_text())
    assert written["ratio"] == 2.0
    assert set(written["measured"]) == {"command", "commit", "date", "machine", "threads"}
    assert f"commit {written['measured']['commit']}" in capsys.readouterr().out
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert written["measured"]["commit"].removesuffix("+") == head.stdout.strip() or head.returncode


@pytest.mark.slow
def test_runs_that_are_disturbed_end_as_others_do(tmp_path):
    said = run("chaos", "--verbs", "import", "download", "--events", "6", "--out", str(tmp_path / "x.json"))
    results = json.loads((tmp_path / "x.json").read_text())
    assert "0 differ from undisturbed runs" in said
    assert sum(len(life["events"]) for life in results["lives"]) == 6


def test_a_difference_of_two_runs_is_found_wherever_it_is(tmp_path):
    for name, loss, pixel in (("one", 0.5, 10), ("same", 0.5000001, 10), ("other", 0.6, 200)):
        folder = tmp_path / name
        (folder / "pictures").mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"loss": loss, "rows_this_run": pixel, "name": "x"}))
        Image.new("RGB", (4, 4), (pixel, 0, 0)).save(folder / "pictures" / "a.png")
    (tmp_path / "other" / ".lease").touch()
    one, same, other = (content_of(tmp_path / name) for name in ("one", "same", "other"))
    assert differences(one, same) == {}
    assert set(differences(one, other)) == {"summary.json: loss", "pictures/a.png: picture", ".lease"}


@pytest.mark.slow
def test_the_start_up_program_measures_both_checkouts(tmp_path):
    argv = ["--only", "generate", "worker", "--turns", "1", "--against", ".", "--out", str(tmp_path / "x.json")]
    said = run("start_up", *argv)
    found = json.loads((tmp_path / "x.json").read_text())
    (turn,) = found["generate"]
    assert all(turn[place][kind] > 0 for place in ("here", "there") for kind in ("clock", "processor"))
    assert all(len(found[f"a worker, {how}"]) == 1 for how in ("forked", "its own Python"))
    assert said.count("| a worker, ") == 2
