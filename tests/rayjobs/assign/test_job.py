"""The E-step job on a real Ray: the same rows whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pyarrow.parquet as pq
import pytest
import ray

from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.prompt_store import PromptStore
from ortho_core.records.assignments import Assignments
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import describe, run
from tests.chromium import check_source
from tests.conftest import ROOT, copy_pairs
from tests.rayjobs.encodings import count_encodings
from tests.rayjobs.same import assert_same, rows

pytestmark = pytest.mark.usefixtures("ray_session")
SETTINGS = {"steps": 4, "rows_per_shard": 4, "slots": 4, "cpus_per_worker": 0.5, "report": False}
#: Where Ray is not what is looked at: in this process, which leaves the bits of any number of workers.
HERE = {"workers": "0"}


def job(pairs, model, out, **options):
    return AssignJob(**{**SETTINGS, "pairs": pairs, "model": model, "out": out, **options})


@pytest.fixture(scope="module")
def undisturbed(tiny_turbo, digits, tmp_path_factory):
    """Twenty-four rows assigned by one worker, in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pairs = copy_pairs(digits, folder / "pairs", 24)
    assert run(job(pairs, tiny_turbo, folder / "out", report=True)) == 0
    return pairs, folder / "out"


def test_the_output_is_complete_and_reconciled(undisturbed):
    _, out = undisturbed
    names = sorted(p.name for p in out.iterdir())
    parts = [name for name in names if name.startswith("part-")]
    assert [name[:12] for name in parts] == [f"part-{i:06d}-" for i in range(6)]
    diagnostics = {f"orthogonal_gaussian_{when}.{kind}" for when in ("init", "final") for kind in ("json", "png")}
    assert set(names) - set(parts) == {"failures.jsonl", "plan.json", "report.html", "summary.json"} | diagnostics
    # Best, worst, a sample and the hardest of the 24 rows, rendered by a worker; the Gaussian check, twice.
    assert check_source(out / "report.html") == 3 * (6 + 9 + 9 + 6) + 2
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["assigned"], summary["quarantined"]) == (24, 24, 0)
    assert summary["evaluations"] == 24 * 4
    assert summary["mean_loss"] < summary["mean_initial_loss"]
    assert (out / "failures.jsonl").read_text() == ""
    base, final = (json.loads((out / f"orthogonal_gaussian_{when}.json").read_text()) for when in ("init", "final"))
    assert base["maps"] == final["maps"] == 24
    assert final["per_map"]["mean_square"] == pytest.approx(
        base["per_map"]["mean_square"], rel=1e-5
    )  # rotated, not scaled
    assert summary["gaussianity"] == final["verdict"]


def test_the_recorded_loss_is_that_of_the_rebuilt_noise(undisturbed, generator):
    import torch

    _, out = undisturbed
    assignments = Assignments(out)
    index = list(range(8))
    noise, targets = (f(index, generator.latent_shape) for f in (assignments.noise, assignments.targets))
    with torch.no_grad():
        condition = generator.encode_prompts([row["prompt"] for row in assignments.rows(index, ["prompt"])])
        losses = (generator.denoise(noise, condition) - targets).square().flatten(1).mean(1)
    recorded = [row["loss"] for row in assignments.rows(index, ["loss"])]
    assert losses.tolist() == pytest.approx(recorded, rel=1e-3)


def test_two_workers_give_the_bits_of_one(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    assert run(job(pairs, tiny_turbo, tmp_path / "two", workers=2)) == 0
    assert_same(rows(tmp_path / "two"), rows(out), loss=0, skew=0)


def test_no_workers_give_the_bits_of_one_without_a_ray(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    told = json.dumps(job(pairs, tiny_turbo, tmp_path / "none", workers=0).model_dump(mode="json"))
    program = (
        "import sys, ray; from rayjobs.assign.config import AssignJob; from rayjobs.assign.job import run; "
        "code = run(AssignJob.model_validate_json(sys.argv[1])); assert not ray.is_initialized(); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, told], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(rows(tmp_path / "none"), rows(out), loss=0, skew=0)


def test_another_slot_count_gives_the_same_to_rounding(undisturbed, tiny_turbo, tmp_path):
    # Other matrix kernels round differently, by 1e-7 of a loss; four quasi-Newton steps amplify that.
    pairs, out = undisturbed
    for slots in (1, 16):
        target = tmp_path / f"slots-{slots}"
        assert run(job(pairs, tiny_turbo, target, slots=slots, **HERE)) == 0
        assert_same(rows(target), rows(out), loss=1e-3, skew=5e-3)


def test_a_warm_start_goes_on_from_the_earlier_assignments(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    assert run(job(pairs, tiny_turbo, tmp_path / "warm", steps=2, warm_start=out, **HERE)) == 0
    cold, warm = rows(out), rows(tmp_path / "warm")
    assert cold.keys() == warm.keys()
    for name, row in warm.items():
        assert row["initial_loss"] == pytest.approx(cold[name]["loss"], rel=1e-5)
        assert row["loss"] <= row["initial_loss"]
    with pytest.raises(UserError, match=r"does not fit this run: patch_size was 2, now 4; regions was 1, now 2"):
        run(job(pairs, tiny_turbo, tmp_path / "other", patch_size=4, regions=2, warm_start=out))


@pytest.mark.parametrize("settings", [pytest.param({"regions": 2}, marks=pytest.mark.slow), {"transform": "free"}])
def test_other_noise_spaces_are_recorded_and_gone_on_from(settings, undisturbed, tiny_turbo, tmp_path, generator):
    pairs, _ = undisturbed
    short = copy_pairs(pairs, tmp_path / "short", 6)
    assert run(job(short, tiny_turbo, tmp_path / "out", **settings, **HERE)) == 0
    assignments = Assignments(tmp_path / "out")
    noise, targets = (get(range(6), generator.latent_shape) for get in (assignments.noise, assignments.targets))
    kept = assignments.rows(range(6), ["prompt", "latent_loss"])
    latents = generator.denoise(noise, generator.encode_prompts([row["prompt"] for row in kept]))
    losses = (latents - targets).square().mean((1, 2, 3)).tolist()
    assert losses == pytest.approx([row["latent_loss"] for row in kept], rel=1e-3)
    assert run(job(short, tiny_turbo, tmp_path / "warm", steps=1, warm_start=tmp_path / "out", **settings, **HERE)) == 0
    again = Assignments(tmp_path / "warm").rows(range(6), ["latent_loss"])
    assert [row["latent_loss"] for row in again] == pytest.approx(losses, rel=1e-3)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_to_rounding(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    assert run(job(pairs, tiny_turbo, tmp_path / "compiled", compile=True)) == 0
    assert_same(rows(tmp_path / "compiled"), rows(out), loss=1e-3, skew=5e-3)


def test_a_finished_run_returns_at_once_and_a_changed_one_is_refused(undisturbed, tiny_turbo):
    pairs, out = undisturbed
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    assert run(job(pairs, tiny_turbo, out)) == 0
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")} == before
    with pytest.raises(UserError, match=r"config\.steps was 4, now 5"):
        run(job(pairs, tiny_turbo, out, steps=5))


def test_a_lost_and_a_damaged_part_are_made_again(undisturbed, tiny_turbo):
    pairs, out = undisturbed
    before = rows(out)
    first, second, *_ = sorted(out.glob("part-*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    assert run(job(pairs, tiny_turbo, out, **HERE)) == 0
    assert_same(rows(out), before, loss=0, skew=0)


def test_bad_rows_are_quarantined_and_the_rest_is_as_without_them(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    lines = (pairs / "pairs.jsonl").read_text().splitlines()
    (pairs / "images" / "broken.png").write_bytes(b"\x89PNG\r\n")
    # Replaced in place, so that the other rows keep their numbers; shard 2 is bad as a whole.
    bad = {
        1: '{"image": "images/0001.png"}',
        5: '{"prompt": "x", "image": "../../etc/passwd"}',
        **dict.fromkeys(range(8, 12), '{"prompt": "x", "image": "images/broken.png"}'),
        23: "{",
    }
    spoiled = pairs / "spoiled.jsonl"
    spoiled.write_text("\n".join(bad.get(i, line) for i, line in enumerate(lines)))
    assert run(job(spoiled, tiny_turbo, tmp_path / "out", **HERE)) == 3
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert {f["row"]: f["reason"] for f in failures} == {
        1: "missing-prompt",
        5: "outside-root",
        **dict.fromkeys(range(8, 12), "undecodable-image"),
        23: "not-json",
    }
    good = {name: row for name, row in rows(out).items() if int(name[:6]) not in bad}
    assert_same(rows(tmp_path / "out"), good, loss=0, skew=0)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["assigned"] + summary["quarantined"] == summary["rows"] == 24


def test_a_systematic_failure_ends_the_run_with_its_reason(tiny_turbo, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "x", "image": "nowhere.png"}\n' * 12)
    with pytest.raises(RunFailed, match=r"every row of the first shard failed \(missing-image\)"):
        run(job(tmp_path, tiny_turbo, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("part-*"))


def test_too_many_bad_rows_end_the_run_early_and_a_higher_rate_goes_on(tiny_turbo, digits, tmp_path):
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    lines = (pairs / "pairs.jsonl").read_text().splitlines()
    # A usable row in each shard of twenty, so that no shard is bad as a whole.
    rows = [lines[i // 20] if i % 20 == 0 else '{"prompt": "x", "image": "gone.png"}' for i in range(200)]
    (pairs / "pairs.jsonl").write_text("\n".join(rows))
    settings = {"steps": 1, "rows_per_shard": 20}
    out = tmp_path / "out"
    with pytest.raises(
        RunFailed, match=r"95 of 100 rows so far are quarantined, more than --max-failure-rate 0.5 .*gone\.png"
    ):
        run(job(pairs, tiny_turbo, out, **settings))
    assert not (out / "summary.json").exists()
    assert run(job(pairs, tiny_turbo, out, max_failure_rate=0.95, **settings)) == 3
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["assigned"], summary["quarantined"]) == (10, 190)


def test_a_model_that_does_not_load_is_one_line_not_a_restart_loop(small_pairs, tiny_turbo, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_turbo, broken)
    config = json.loads((broken / "vae" / "config.json").read_text())
    (broken / "vae" / "config.json").write_text(json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(RunFailed, match=r"model folder .*broken does not load as StableDiffusionXLPipeline: "):
        run(job(small_pairs, broken, tmp_path / "out"))


def test_a_worker_that_does_not_fit_is_refused_before_it_waits_forever(small_pairs, tiny_turbo, tmp_path):
    with pytest.raises(
        UserError, match=r"a worker needs 64 CPUs and 0 GPUs on one node; the cluster.s largest has 4 CPUs"
    ):
        run(job(small_pairs, tiny_turbo, tmp_path / "out", cpus_per_worker=64))


def test_a_killed_driver_is_resumed_to_the_same_rows(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    target = tmp_path / "killed"
    argv = [sys.executable, "-m", "rayjobs.assign", "--pairs", pairs, "--model", tiny_turbo, "--out", target]
    argv += [x for name, value in SETTINGS.items() for x in (f"--{name}", str(value))]
    # A session of its own, and no cluster to join: SIGKILL takes the driver and Ray with it.
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    driver = subprocess.Popen([str(a) for a in argv], env=environment, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(target.glob("part-*")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    published = {p.name: p.read_bytes() for p in target.glob("part-*")}
    assert published
    assert all(pq.read_metadata(target / name).num_rows for name in published)
    assert run(job(pairs, tiny_turbo, target)) == 0
    assert {name: (target / name).read_bytes() for name in published} == published
    assert_same(rows(target), rows(out), loss=0, skew=0)
    assert not list(target.glob(".*partial"))


def test_a_dry_run_times_a_worker_and_writes_nothing(small_pairs, tiny_turbo, tmp_path):
    said = describe(job(small_pairs, tiny_turbo, tmp_path / "out", workers="1:3", candidates=5))
    # Three forwards count as an evaluation.
    assert (said["rows"], said["shards"], said["evaluations_at_most"]) == (24, 6, 24 * 4 + 8 * 5)
    assert said["candidate_forwards"] == 24 * 5
    assert (said["slots"], said["device"]) == (4, "cpu")
    hours = said["evaluations_at_most"] * said["seconds_per_evaluation"] / 3600
    assert said["worker_hours_at_most"] == pytest.approx(hours, abs=1e-3)
    assert said["hours_at_most"] == pytest.approx(hours / 3, abs=1e-3)
    assert not (tmp_path / "out").exists()


def test_workers_tell_prometheus_what_they_do(small_pairs, tiny_turbo, tmp_path):
    lines = (small_pairs / "pairs.jsonl").read_text().splitlines()
    lines[5] = '{"prompt": "x", "image": "gone.png"}'
    (small_pairs / "pairs.jsonl").write_text("\n".join(lines))
    (node,) = ray.nodes()
    assert run(job(small_pairs, tiny_turbo, tmp_path / "out")) == 3
    wanted = {"rows_assigned_total": 23, "rows_quarantined_total": 1, "evaluations_total": 92, "slots": 4}
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics") as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("ray_ortho_")]
        # Other tests' workers have told of themselves as well: this one's is among them.
        found = {
            name
            for name, value in wanted.items()
            for line in lines
            if f"_{name}{{" in line and float(line.split()[-1]) == value
        }
        if found == set(wanted) or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert found == set(wanted)
    assert any("ray_ortho_slot_occupancy" in line for line in lines)
    assert any("ray_ortho_wait_seconds_total" in line and 'stage="publish"' in line for line in lines)


def test_embeddings_in_a_folder_are_made_once_for_all_runs_and_change_no_bit(
    undisturbed, tiny_turbo, tmp_path, monkeypatch, capsys
):
    pairs, out = undisturbed
    encoded, prompts = count_encodings(monkeypatch), {row["prompt"] for row in rows(out).values()}
    options = {**HERE, "prompt_embeddings": tmp_path / "embeddings"}
    assert run(job(pairs, tiny_turbo, tmp_path / "one", **options)) == 0
    assert encoded == {"pass": dict.fromkeys(prompts, 1), "assign": {}, "train": {}}
    assert f"prompts: {len(prompts)}/{len(prompts)} prompts" in capsys.readouterr().err
    assert_same(rows(tmp_path / "one"), rows(out), loss=0, skew=0)
    assert run(job(pairs, tiny_turbo, tmp_path / "two", **options, seed=1)) == 0
    assert encoded["pass"].total() == len(prompts)
    assert not encoded["assign"]
    # It is not part of the plan: the run is complete without it, too.
    assert run(job(pairs, tiny_turbo, tmp_path / "one", **HERE)) == 0


def test_two_workers_encode_first_and_search_afterwards(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    options = {"workers": 2, "prompt_embeddings": tmp_path / "embeddings"}
    assert run(job(pairs, tiny_turbo, tmp_path / "out", **options)) == 0
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)
    (folder,) = (tmp_path / "embeddings").iterdir()
    store = PromptStore(tmp_path / "embeddings", folder.name)
    assert len(store) == len({row["prompt"] for row in rows(out).values()})


def test_a_resumed_run_encodes_the_prompts_of_the_open_shards_alone(undisturbed, tiny_turbo, tmp_path, monkeypatch):
    pairs, out = undisturbed
    shutil.copytree(out, tmp_path / "out")
    part = sorted((tmp_path / "out").glob("part-*"))[2]
    prompts = set(pq.read_table(part)["prompt"].to_pylist())
    part.unlink()
    encoded = count_encodings(monkeypatch)
    assert run(job(pairs, tiny_turbo, tmp_path / "out", **HERE, prompt_embeddings=tmp_path / "embeddings")) == 0
    assert (encoded["pass"], encoded["assign"]) == (dict.fromkeys(prompts, 1), {})
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)
