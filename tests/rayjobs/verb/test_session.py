"""Which Ray a job runs on: the one that is there, else one of its own."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ortho_core.errors import UserError
from ortho_core.records.assignments import Assignments
from rayjobs.verb.resources import WorkerResources
from tests.conftest import ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path):
    """A head node as `ray start` makes it, with more logical CPUs than this machine has; yields its address."""
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    cpus = str(2 * (os.cpu_count() or 1))
    argv = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus", cpus, "--include-dashboard=false"]
    log = (tmp_path / "head.log").open("w")
    # In a folder of its own: whoever looks for a Ray in this process's folder would find it.
    own = tempfile.mkdtemp(prefix="n", dir="/tmp")
    env = os.environ | {"RAY_TMPDIR": own}
    process = subprocess.Popen([str(a) for a in argv], stdout=log, stderr=log, start_new_session=True, env=env)
    deadline = time.monotonic() + 60
    while "Ray runtime started" not in (tmp_path / "head.log").read_text():
        assert process.poll() is None, (tmp_path / "head.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    process.kill()  # with --block, the node's other processes end when this one does
    process.wait()
    log.close()
    shutil.rmtree(own, ignore_errors=True)


PROGRAM = """
import os, signal, threading, time
from pathlib import Path
import ray
from rayjobs.verb.session import ray_session

def caught():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

class Told(Exception):
    pass

def told(*_):
    raise Told

signal.signal(signal.SIGTERM, told)
usual, sent = ray.shutdown, []

def shutdown():
    def tell():  # once the core has gone, which is when SIGTERM has no handler of ours
        while not over.is_set():
            if not hasattr(ray._private.worker.global_worker, "core_worker") and not sent:
                time.sleep(0.1)
                sent.append(ray.is_initialized())
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)

    over = threading.Event()
    beside = threading.Thread(target=tell)
    beside.start()
    usual()
    over.set()
    beside.join()

ray.shutdown = shutdown
try:
    with ray_session():
        print(caught(), signal.getsignal(signal.SIGTERM) is told)
except Told:
    print("told", len(sent))
print(caught(), signal.getsignal(signal.SIGTERM) is told, ray.is_initialized())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process catches is read from /proc")
def test_what_happens_at_sigterm_is_the_same_after_rays_start_at_its_end_and_after_that():
    """Ray's core takes the handler away where Python does not see it; a Ray that is told in the midst of its end still ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "True True\ntold 1\nTrue True False\n", (done.returncode, done.stderr)


@pytest.mark.usefixtures("ray_session")
def test_what_does_not_fit_is_refused_unless_the_cluster_grows():
    assert WorkerResources(cpus_per_worker=1.5).fitting(8) == 2  # of the session's four CPUs
    assert WorkerResources().spare_cpu(2) == 1
    assert WorkerResources().spare_cpu(3) == 0
    with pytest.raises(UserError, match=r"a worker needs 1 CPUs and 2 GPUs.*--autoscaling"):
        WorkerResources(gpus_per_worker=2).fitting(1)
    growing = WorkerResources(gpus_per_worker=2, autoscaling=True)
    assert growing.fitting(8) == 8
    assert growing.spare_cpu(8) == 1
    with pytest.raises(UserError, match=r"--node-labels: no node has \{'zone': 'far'\}; the cluster's labels are"):
        WorkerResources(node_labels={"zone": "far"}).fitting(1)


@pytest.mark.slow
def test_a_job_uses_the_cluster_that_ray_start_made(head, small_pairs, tiny_turbo, tmp_path):
    # The worker asks for more CPUs than the machine has, so a Ray of the job's own would refuse it.
    cpus = 1.5 * (os.cpu_count() or 1)
    argv = [sys.executable, "-m", "rayjobs.assign", "--pairs", small_pairs, "--model", tiny_turbo]
    argv += ["--out", tmp_path / "out", "--steps", "1", "--cpus-per-worker", cpus]
    environment = {**os.environ, "RAY_ADDRESS": head}
    done = subprocess.run([str(a) for a in argv], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Assignments(tmp_path / "out")) == 24


def test_a_cluster_that_is_gone_is_refused_in_one_line(small_pairs, tiny_turbo, tmp_path):
    argv = [
        sys.executable,
        "-m",
        "rayjobs.assign",
        "--pairs",
        small_pairs,
        "--model",
        tiny_turbo,
        "--out",
        tmp_path / "out",
    ]
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = subprocess.run([str(a) for a in argv], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    _, line = done.stderr.splitlines()  # after the one that says what the pair set is
    assert line.startswith(f"ortho assign: RAY_ADDRESS names {environment['RAY_ADDRESS']}: nothing answers there")


@pytest.mark.slow
def test_a_ray_of_the_commands_own_refuses_a_worker_that_does_not_fit(small_pairs, tiny_turbo, tmp_path):
    argv = [sys.executable, "-m", "rayjobs.assign", "--pairs", small_pairs, "--model", tiny_turbo, "--local"]
    argv += ["--out", tmp_path / "out", "--steps", "1", "--cpus-per-worker", 1.5 * (os.cpu_count() or 1)]
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    done = subprocess.run([str(a) for a in argv], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *ours, line = done.stderr.splitlines()
    assert line.startswith("ortho assign: a worker needs")
    assert all(said.startswith(("pairs: ", "Ray: starting one", "assign: ")) for said in ours)  # none of Ray's own
