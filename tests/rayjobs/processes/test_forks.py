import os
import shlex
import socket
import subprocess
import sys

import psutil
import ray

from rayjobs.processes import forks
from rayjobs.processes.forks import fork_server, listens
from tests.conftest import ROOT, start_ray
from tests.rayjobs.processes.made import say, server_of

DRIVER = """
import os, time, psutil, ray
from rayjobs.verb.session import ray_session
with ray_session():
    print(ray.get(ray.remote(lambda: [os.getpid(), os.getppid()]).remote()), flush=True)
    time.sleep(100)
"""


def whereabouts() -> tuple[int, bool]:
    return os.getppid(), "torch" in sys.modules


def test_rays_workers_are_forks(ray_session):
    parent, preloaded = ray.get(ray.remote(whereabouts).remote())
    assert preloaded
    assert "rayjobs.processes.fork_server" in " ".join(psutil.Process(parent).cmdline())


def test_nothing_is_forked_where_an_accelerator_is(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(forks, "ACCELERATORS", (str(tmp_path / "nvidia*"),))
    with fork_server() as runtime_env:
        assert runtime_env == {}


def test_nothing_is_forked_where_nobody_can_listen(monkeypatch):
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        assert listens(one, f"ortho-test-{os.getpid()}")
        assert not listens(other, f"ortho-test-{os.getpid()}")
    monkeypatch.setattr(forks, "listens", lambda *_: False)
    with fork_server() as runtime_env:
        assert runtime_env == {}


def test_a_server_that_died_leaves_workers_that_start_as_ever(tmp_path):
    with fork_server() as runtime_env:
        server_of(runtime_env).kill()
        said, _ = say(runtime_env, tmp_path)
        assert not said["preloaded"]
    assert said["argv"] == [str(tmp_path / "program.py")]


SLEEPS = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(100)"
ONLY_SERVER = """
import shlex, subprocess, sys, time
from rayjobs.processes.forks import fork_server
with fork_server() as runtime_env:
    subprocess.run([*shlex.split(runtime_env["py_executable"]), sys.argv[1]])
    time.sleep(100)
"""


def test_a_fork_that_ray_does_not_know_yet_ends_with_the_block(tmp_path):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    with fork_server() as runtime_env:
        command = [*shlex.split(runtime_env["py_executable"]), str(tmp_path / "sleeps.py")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            fork = psutil.Process(int(client.stdout.readline()))
        assert fork.ppid() == server_of(runtime_env).pid
    psutil.wait_procs([fork], timeout=30)
    assert not fork.is_running()


def test_and_with_a_program_that_is_killed(tmp_path):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ONLY_SERVER, str(tmp_path / "sleeps.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        fork = psutil.Process(int(program.stdout.readline()))
        assert psutil.Process(fork.ppid()).ppid() == program.pid
        program.kill()
    psutil.wait_procs([fork], timeout=30)
    assert not fork.is_running()


def test_it_ends_with_the_block_also_while_it_imports():
    with fork_server() as runtime_env:
        server = server_of(runtime_env)
    assert not server.is_running()


def test_it_and_its_workers_end_with_a_driver_that_is_killed():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, env=environment) as driver:
        worker, server = map(psutil.Process, eval(driver.stdout.readline()))
        assert server.ppid() == driver.pid
        driver.kill()
    _, alive = psutil.wait_procs([worker, server], timeout=30)
    assert alive == []


def test_it_serves_a_program_whose_modules_are_where_this_ones_are():
    start_ray()
    here = ray.get(ray.remote(lambda: __import__("rayjobs").__file__).remote())
    assert here == __import__("rayjobs").__file__
