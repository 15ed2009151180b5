"""The M-step job when something goes wrong: it goes on to the same result, or ends with one line that says why."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ortho_core.errors import RunFailed
from ortho_core.mstep.update import MStep
from ortho_core.records.assignments import Assignments
from rayjobs.train.job import run
from rayjobs.training.run_files import STOPPED, load_state, states
from tests.rayjobs.train.training import (
    altered,
    assert_same_lines,
    assert_same_weights,
    history,
    job,
    losses,
    planned,
    summary,
)

pytestmark = pytest.mark.usefixtures("ray_session")
ROOT = Path(__file__).parents[3]
#: Thirty-six updates in three epochs, a state after every fifth: the kill is in the midst of an epoch.
LONG = {"epochs": 3, "batch_size": 2, "checkpoint_every": 5, "lr": 1e-4, "save_every": 1}


@pytest.fixture(scope="module")
def undisturbed(assigned, tiny_turbo, tmp_path_factory, ray_session):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run(job(assigned, tiny_turbo, out, **LONG)) == 0
    return out


def assert_same_run(out, other):
    ours, theirs = history(out), history(other)
    assert [line["update"] for line in ours] == list(range(1, 37))
    assert_same_lines(ours, theirs, 1e-5)
    assert losses(out) == pytest.approx(losses(other), abs=1e-5)
    assert_same_weights(out / "checkpoint-final", other / "checkpoint-final", 1e-4)
    assert not list(out.glob(".*.partial"))
    assert not (out / "state").exists()


def wait_for_the_second_epoch(out, alive):
    """Until a state from the midst of it is where a restart looks for one."""
    deadline, update = time.monotonic() + 240, 0
    while update < 13 and alive() and time.monotonic() < deadline:
        time.sleep(0.02)
        try:
            update = load_state(states(out)[0])["update"]
        except (OSError, IndexError):
            continue  # not yet, or just replaced by the next


def stamp(out):
    return os.stat(out / "checkpoint-epoch-001").st_ino


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_goes_on(undisturbed, assigned, tiny_turbo, tmp_path):
    out, seen = tmp_path / "out", {}

    def kill():
        wait_for_the_second_epoch(out, lambda: True)
        children = psutil.Process(os.getpid()).children(recursive=True)
        (worker,) = [p for p in children if "RayTrainWorker" in " ".join(p.cmdline())]
        seen["folder"] = stamp(out)
        worker.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert run(job(assigned, tiny_turbo, out, num_workers=1, **LONG)) == 0
    thread.join()
    assert stamp(out) == seen["folder"]  # the first epoch was not made again
    assert_same_run(out, undisturbed)


def test_a_killed_driver_is_resumed(undisturbed, assigned, tiny_turbo, tmp_path):
    out = tmp_path / "killed"
    one = job(assigned, tiny_turbo, out, num_workers=1, **LONG)
    options = {k: v for k, v in one.model_dump(mode="json").items() if v is not None and k != "lora_targets"}
    argv = [sys.executable, "-m", "rayjobs.train", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]
    driver = subprocess.Popen(argv, env={**os.environ, "RAY_ADDRESS": "local"}, start_new_session=True)
    wait_for_the_second_epoch(out, lambda: driver.poll() is None)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (out / "train_summary.json").exists()
    before = stamp(out)
    assert run(one) == 0
    assert stamp(out) == before
    assert_same_run(out, undisturbed)


def poisoned(assigned, folder):
    """Assignments with one target that is not a number, in the midst of the second part, and that row's image file."""
    bad, _ = altered(assigned, folder, 13, target_latent=lambda target: [float("nan"), *target[1:]])
    return bad, Assignments(folder).rows([13], ["image"])[0]["image"]


def test_an_update_that_is_not_finite_is_left_out_and_told(trained, assigned, tiny_turbo, tmp_path):
    bad, name = poisoned(assigned, tmp_path / "bad")
    one = job(bad, tiny_turbo, tmp_path / "out", max_skipped_updates=2)
    _, data = planned(one)
    hit = [1 + 3 * e + s for e in range(2) for s in range(3) if 13 in data.order.share(e, s)]
    assert run(one) == 0
    assert summary(tmp_path / "out")["skipped_updates"] == [{"update": u, "rows": [name]} for u in hit]
    lines = history(tmp_path / "out")
    assert [not np.isfinite(line["loss"]) for line in lines] == [u in hit for u in range(1, 7)]
    means = [np.mean([line["loss"] for line in lines[k : k + 3] if np.isfinite(line["loss"])]) for k in (0, 3)]
    assert losses(tmp_path / "out") == pytest.approx(means, rel=1e-6)
    # Until then, it is the run without the fault.
    assert_same_lines(lines[: hit[0] - 1], history(trained), 1e-5)
    assert (tmp_path / "out" / "train_history.png").is_file()


def failure(one):
    with pytest.raises(RunFailed) as raised:
        run(one)
    assert "\n" not in str(raised.value)
    assert not (one.out / "checkpoint-final").exists()
    assert not (one.out / "train_summary.json").exists()
    return str(raised.value)


def test_too_many_of_them_end_the_run_in_one_line_that_names_the_row(assigned, tiny_turbo, tmp_path):
    bad, name = poisoned(assigned, tmp_path / "bad")
    said = failure(job(bad, tiny_turbo, tmp_path / "out", max_skipped_updates=0))
    assert "training failed: the gradient was not finite in 1 updates, the last of them " in said
    assert f"(--max-skipped-updates 0); not finite: rows {name};" in said


def test_a_learning_rate_that_explodes_ends_the_run_in_one_line(assigned, tiny_turbo, tmp_path):
    said = failure(job(assigned, tiny_turbo, tmp_path / "out", lr=1e30, max_skipped_updates=3))
    assert "the gradient was not finite in 4 updates, the last of them 5 of 6" in said
    assert "a lower --lr usually helps" in said


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["damaged", "not finite"])
def test_of_two_workers_that_cannot_go_on_none_is_started_in_vain(assigned, tiny_turbo, tmp_path, fault):
    if fault == "damaged":  # one of the two finds it, the other waits for the first
        bad, name = altered(assigned, tmp_path / "bad", 13, skew=lambda skew: [skew[0] + 0.1, *skew[1:]])
        says = f"the rebuilt noise of ['{name}'] does not match its checksum"
    else:
        bad, name = poisoned(assigned, tmp_path / "bad")
        says = f"not finite: rows {name};"
    one = job(bad, tiny_turbo, tmp_path / "out", num_workers=2, max_skipped_updates=0, max_restarts=1)
    said = failure(one)
    assert said.startswith("training failed: ")
    assert says in said
    # Left where the workers fail again after the one restart; the restarted workers found it, and it was taken away.
    assert not (one.out / STOPPED).exists()


def test_a_damaged_assignment_ends_the_run_in_one_line(assigned, tiny_turbo, tmp_path):
    bad, name = altered(assigned, tmp_path / "bad", 13, skew=lambda skew: [skew[0] + 0.1, *skew[1:]])
    said = failure(job(bad, tiny_turbo, tmp_path / "out"))
    assert said == (
        f"training failed: {tmp_path}/bad: the rebuilt noise of ['{name}'] does not match its checksum; assign again"
    )


def test_memory_that_runs_out_ends_the_run_in_one_line(assigned, tiny_turbo, tmp_path, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")

    monkeypatch.setattr(MStep, "update", run_out)
    said = failure(job(assigned, tiny_turbo, tmp_path / "out", gradient_accumulation_steps=2))
    assert said.startswith("training failed: GPU memory ran out with 4 rows at once on each worker")
    assert "raise --gradient-accumulation-steps" in said


def test_a_log_line_that_a_kill_cut_short_is_dropped(trained, assigned, tiny_turbo, tmp_path):
    """Without a saved state, the run starts anew, whatever the log holds."""
    out = tmp_path / "out"
    out.mkdir()
    one = job(assigned, tiny_turbo, out)
    plan, _ = planned(one)
    (out / "plan.json").write_text(plan.text())
    (out / "train_history.jsonl").write_text('{"update": 1, "group": "train", "loss": 9.0}\n{"update": 2, "gro')
    (out / STOPPED).write_text("an error of the last time")
    assert run(one) == 0
    assert history(out) == history(trained)


def test_a_run_in_the_drivers_own_process_goes_on_where_it_was(trained, assigned, tiny_turbo, tmp_path, monkeypatch):
    one = job(assigned, tiny_turbo, tmp_path / "out", checkpoint_every=2)
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
    assert len(updates) == 6 + 2  # those after the fourth again
    assert_same_lines(history(tmp_path / "out"), history(trained), 1e-5)
    assert len(history(tmp_path / "out")) == 6
    assert_same_weights(tmp_path / "out" / "checkpoint-final", trained / "checkpoint-final", 1e-4)
    assert not states(tmp_path / "out")


def test_a_damaged_state_costs_that_state_alone(assigned, tiny_turbo, trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    one = job(assigned, tiny_turbo, out, checkpoint_every=1, keep_states=2)
    updates, usual = [], MStep.update

    def dies_at_the_fifth(self, batch):
        updates.append(len(batch.noise))
        if len(updates) == 5:
            raise KeyboardInterrupt
        return usual(self, batch)

    monkeypatch.setattr(MStep, "update", dies_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(one)
    assert [state.name for state in states(out)] == ["update-00000004.pt", "update-00000003.pt"]
    content = bytearray(states(out)[0].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 256] = bytes(256)  # more than there is between two tensors
    states(out)[0].write_bytes(content)
    assert run(one) == 0
    assert "update-00000004.pt is damaged: the run continues from an earlier state" in capsys.readouterr().err
    assert len(updates) == 5 + 3
    assert_same_lines(history(out), history(trained), 1e-5)


def driver(assigned, tiny_turbo, out, *options):
    """`ortho train` as a process of its own."""
    command = [sys.executable, "-m", "rayjobs", "train", "--model", str(tiny_turbo), "--assignments", str(assigned[1])]
    command += ["--batch-size", "8", "--cpus-per-worker", "0.5", "--out", str(out), *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def ended(process):
    """What it said, once it has ended."""
    return process.communicate(timeout=300)[1]


def assert_same_folders(one, other):
    assert_same_weights(one / "checkpoint-final", other / "checkpoint-final", 0.0)
    assert len(history(one)) == len(history(other))
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 3.0, 9.0])
def test_two_drivers_on_one_folder_make_what_one_makes(seconds, assigned, tiny_turbo, tmp_path):
    alone = driver(assigned, tiny_turbo, tmp_path / "one", "--epochs", "2")
    said = ended(alone)
    assert alone.returncode == 0, said
    first = driver(assigned, tiny_turbo, tmp_path / "two", "--epochs", "2")
    time.sleep(seconds)
    second = driver(assigned, tiny_turbo, tmp_path / "two", "--epochs", "2")
    told = [ended(process) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], told
    assert sum("is being worked on by `ortho train` on" in said for said in told) == 1
    assert_same_folders(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_driver_that_wakes_up_beside_the_one_that_took_over_leaves_it_the_folder(assigned, tiny_turbo, tmp_path):
    long = ("--epochs", "40", "--checkpoint-every", "4")
    alone = driver(assigned, tiny_turbo, tmp_path / "one", *long)
    said = ended(alone)
    assert alone.returncode == 0, said
    out = tmp_path / "two"
    first = driver(assigned, tiny_turbo, out, *long)
    wait_for_a_state(out, first)
    asleep = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in asleep:
        process.suspend()
    before = states(out)[0].stem
    second = driver(assigned, tiny_turbo, out, *long)
    while second.poll() is None and states(out)[:1] and states(out)[0].stem <= before:
        time.sleep(0.1)
    assert second.poll() is None, ended(second)
    for process in asleep:
        process.resume()
    said = ended(first)
    assert first.returncode == 1
    assert "another driver has taken" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    said = ended(second)
    assert second.returncode == 0, said
    assert_same_folders(out, tmp_path / "one")


def wait_for_a_state(out, process):
    deadline = time.monotonic() + 240
    while not states(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert states(out)
