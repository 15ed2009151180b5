"""Resumable states: whole or not there, as many as asked for, and what a disk did to one is seen."""

import errno
import os
import pickle
import subprocess
import sys

import pytest
import torch

from rayjobs.training.run_files import drop_damaged_states, load_state, save_state, states

#: Files of at most 0.1 MB: writing more fails, as on a full disk, in the midst of a file.
LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from rayjobs.training.run_files import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_state(Path(sys.argv[1]), 3, {"moments": torch.zeros(100_000)}, keep=1)
except OSError as error:
    print(error.errno, error.filename)
"""


def test_where_there_is_no_room_for_a_state_it_is_said_with_the_file_and_no_part_stays(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} {tmp_path / 'state' / 'update-00000003.pt'}\n"
    assert list((tmp_path / "state").iterdir()) == []


def test_a_state_that_is_no_state_keeps_its_own_error(tmp_path):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_state(tmp_path, 3, {"step": lambda: None}, keep=1)
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_states_that_a_disk_cut_short_are_not_resumed_from(tmp_path, kept):
    for update in (5, 10):
        save_state(tmp_path, update, {"update": update, "weights": torch.zeros(1000)}, keep=2)
    last = states(tmp_path)[0]
    size = last.stat().st_size
    os.truncate(last, kept if isinstance(kept, int) else int(kept * size))
    assert drop_damaged_states(tmp_path) == [last]
    assert load_state(states(tmp_path)[0])["update"] == 5
    assert drop_damaged_states(tmp_path) == []


def test_as_many_states_are_kept_as_asked_for_and_none_is_left_half(tmp_path, monkeypatch):
    for update in (2, 4, 100_000_000):
        save_state(tmp_path, update, {"update": update}, keep=2)
    assert [load_state(state)["update"] for state in states(tmp_path)] == [100_000_000, 4]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 100_000_002, {"update": 1}, keep=2)
    assert len(os.listdir(tmp_path / "state")) == 2
