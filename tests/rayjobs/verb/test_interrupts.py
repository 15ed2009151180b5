"""What tells a process to end, in processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rayjobs.verb.interrupts import Interrupted, as_told, told_to_end

ROOT = Path(__file__).parents[3]
HEAD = """
import os, signal, sys, time
from rayjobs.verb import interrupts
from rayjobs.verb.interrupts import Interrupted, taken, told_to_end
say = lambda told: print("last line:", told, flush=True)
me = os.getpid()
"""


def ended(program: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(("name", "says"), [("SIGINT", "interrupted; "), ("SIGTERM", "ended by SIGTERM; ")])
def test_a_signal_is_an_exception_with_its_exit_code_and_line(name, says):
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Interrupted) as raised, told_to_end(print):
        signal.raise_signal(getattr(signal, name))
    assert raised.value.code == 128 + getattr(signal, name)
    assert str(raised.value) == says + "the same command again goes on from here"
    assert signal.getsignal(getattr(signal, name)) is before


def test_another_signal_does_not_disturb_what_is_cleaned_up():
    program = """
with told_to_end(say):
    try:
        os.kill(me, signal.SIGTERM)
    except Interrupted as told:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(me, number)
        time.sleep(0.2)
        print("cleaned up", told.code)
"""
    assert ended(program) == (0, "cleaned up 143\n")


def test_an_exception_that_was_dropped_is_raised_again():
    program = """
class Dropping:
    def __del__(self):
        os.kill(me, signal.SIGINT)
        time.sleep(0.01)
with told_to_end(say):
    try:
        Dropping()
        print("dropped", flush=True)
        time.sleep(30)
    except Interrupted as told:
        sys.exit(told.code)
"""
    assert ended(program) == (130, "dropped\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_another_library_made_of_it_is_what_told_to_end(name):
    program = f"""
with told_to_end(say):
    try:
        os.kill(me, signal.{name})
    except Interrupted:
        try:
            raise KeyboardInterrupt from None
        except KeyboardInterrupt as error:
            sys.exit(interrupts.as_told(error).code)
"""
    assert ended(program) == (128 + getattr(signal, name), "")


def test_what_nobody_told_is_ctrl_c():
    assert as_told(KeyboardInterrupt()).number == signal.SIGINT


def test_a_process_that_does_not_come_back_ends_by_itself():
    program = """
interrupts.GRACE_S = 0.5
with told_to_end(say):
    try:
        os.kill(me, signal.SIGINT)
    except Interrupted:
        while True:
            time.sleep(1)
"""
    assert ended(program) == (130, "last line: interrupted; the same command again goes on from here\n")


def test_whoever_takes_it_goes_on_and_is_told_anew():
    program = """
interrupts.GRACE_S = 0.5
with told_to_end(say):
    try:
        os.kill(me, signal.SIGINT)
    except Interrupted:
        taken()
    time.sleep(1)
    try:
        os.kill(me, signal.SIGTERM)
    except Interrupted as told:
        sys.exit(told.code)
"""
    assert ended(program) == (143, "")


def test_what_is_no_interrupt_and_was_dropped_is_told_as_ever():
    program = """
import io
sys.stderr = io.StringIO()
class Dropping:
    def __del__(self):
        raise ValueError("mine")
with told_to_end(say):
    Dropping()
print("ValueError: mine" in sys.stderr.getvalue())
sys.stderr = sys.__stderr__
"""
    assert ended(program) == (0, "True\n")


def test_elsewhere_than_in_the_main_thread_it_changes_nothing():
    handlers = []

    def work():
        with told_to_end(print):
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)],
)
def test_training_under_ray_ends_with_the_line_and_leaves_nothing(
    number, whole_group, no_ray, assigned, tiny_turbo, tmp_path
):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "rayjobs", "train", "--model", str(tiny_turbo), "--assignments", str(assigned[1])]
    command += [
        "--epochs",
        "500",
        "--batch-size",
        "8",
        "--log-every",
        "1",
        "--out",
        str(out),
        "--cpus-per-worker",
        "0.5",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        history, family = out / "train_history.jsonl", []
        while process.poll() is None and not (history.is_file() and history.read_text().count("\n") > 2):
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        code = process.wait(60)
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert last == f"ortho train: {Interrupted(number)}"
    assert code == 128 + number
    assert len(family) > 2
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not (out / "train_summary.json").exists()


@pytest.mark.parametrize(
    ("part", "number"),
    [
        ("gcs_server", signal.SIGTERM),
        ("raylet", signal.SIGINT),
        ("raylet", signal.SIGTERM),
        ("RuntimeEnvAgent", signal.SIGINT),
    ],
)
def test_a_ray_that_is_told_to_end_while_it_starts_leaves_nothing(part, number, no_ray, tmp_path):
    program = "from rayjobs.verb.session import ray_session\nwith told_to_end(say), ray_session():\n    time.sleep(60)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", HEAD + program], stdout=log, stderr=log, env=environment)
        family: set[psutil.Process] = set()
        while process.poll() is None and not any(part in name_of(each) for each in family):
            time.sleep(0.005)
            family = set(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(number)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family |= set(psutil.Process(process.pid).children(recursive=True))
            time.sleep(0.01)
    assert f"Interrupted: {Interrupted(number)}" in (tmp_path / "log").read_text()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [name_of(each) for each in alive] == []


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
