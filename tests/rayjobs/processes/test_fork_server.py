import shlex
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import forked_workers
from tests.rayjobs.processes.made import say, server_of


def test_it_has_started_no_thread_that_a_fork_would_miss(tmp_path):
    runtime_env = forked_workers()
    say(runtime_env, tmp_path)
    threads = Path(f"/proc/{server_of(runtime_env).pid}/task").iterdir()
    names = sorted((thread / "comm").read_text().strip() for thread in threads)
    # jemalloc, inside pyarrow, begins its own anew in a fork.
    assert [name for name in names if name != "jemalloc_bg_thd"] == ["python"]


@pytest.mark.parametrize("sent", [b"", b"half", (3).to_bytes(8, "big") + b"{}", (2).to_bytes(8, "big") + b"{}"])
def test_what_is_no_request_is_dropped_and_the_next_is_served(sent, tmp_path):
    runtime_env = forked_workers()
    server = server_of(runtime_env)
    files = server.num_fds()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + shlex.split(runtime_env["py_executable"])[-1])
        if sent:
            socket.send_fds(client, [sent], [0, 1, 2])
        client.shutdown(socket.SHUT_WR)
        client.settimeout(100)
        assert client.recv(1) == b""
    said, _ = say(runtime_env, tmp_path)
    assert said["preloaded"]
    assert server.num_fds() == files


def test_none_that_has_ended_stays_as_a_zombie(tmp_path):
    runtime_env = forked_workers()
    said, _ = say(runtime_env, tmp_path)
    while psutil.pid_exists(said["pid"]):
        assert psutil.Process(said["pid"]).status() != psutil.STATUS_ZOMBIE
        time.sleep(0.01)
    assert said["pid"] not in {each.pid for each in server_of(runtime_env).children()}


def test_forks_have_random_numbers_of_their_own(tmp_path):
    """NumPy's global ones are not seeded anew by the fork itself."""
    (tmp_path / "draws.py").write_text("import os, random, numpy; print(random.random(), numpy.random.random())")
    command = [*shlex.split(forked_workers()["py_executable"]), str(tmp_path / "draws.py")]
    drawn = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split() for _ in range(2)]
    assert len({number for two in drawn for number in two}) == 4
