import errno
import pickle
import subprocess
import sys

import pytest

from rayjobs.training.run_files import save_state

#: Files of at most 0.1 MB: writing more fails, as on a full disk, in the midst of a file.
LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from rayjobs.training.run_files import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_state({"moments": torch.zeros(100_000)}, Path(sys.argv[1]))
except OSError as error:
    print(error.errno, error.filename)
"""


def test_where_there_is_no_room_for_a_state_it_is_said_with_the_file_and_no_part_stays(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "state.pt")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{errno.EFBIG} {tmp_path / 'state.pt'}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_no_state_keeps_its_own_error(tmp_path):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_state({"step": lambda: None}, tmp_path / "state.pt")
    assert list(tmp_path.iterdir()) == []
