"""Two nodes in network namespaces of their own, as `cluster/local` starts them: the link of one is cut in the E-step."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run
from tests.conftest import copy_pairs
from tests.head import LOCAL, Head, node_environment, running, short_folder
from tests.rayjobs.same import assert_same, rows

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
ASSIGN = {"steps": 40, "rows_per_shard": 2, "slots": 2}
#: How soon the head gives up a node that does not answer; by itself Ray takes half a minute.
IMPATIENT = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_hosts():
    """Names of two namespaces that see nothing but each other."""
    names = [f"ortho-{role}-{os.getpid()}" for role in ("head", "worker")]
    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("no network namespaces: needs root and iproute2")
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", names[1])
        for name, address in zip(names, (HEAD, WORKER), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "link0")
            ip("-n", name, "link", "set", "link0", "up")
        yield names


def inside(host: str) -> list[str]:
    return ["ip", "netns", "exec", host]


def processes(host: str) -> list[psutil.Process]:
    found = subprocess.run(["ip", "netns", "pids", host], check=True, capture_output=True, text=True)
    return [psutil.Process(int(pid)) for pid in found.stdout.split()]


def computes(host: str) -> bool:
    return any("PoolActor" in " ".join(process.cmdline()) for process in processes(host))


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as names:
        yield names


@pytest.fixture(scope="module")
def head(hosts):
    """A head with two CPUs and a worker with one; the worker has the head's token, as one copies it."""
    with short_folder() as one, short_folder() as other:
        yield from two_nodes(hosts, [one, other])


def two_nodes(hosts, folders):
    envs = [node_environment(folder, {}) | {"NODE_IP": at} for folder, at in zip(folders, (HEAD, WORKER), strict=True)]
    head = Head(folders[0], f"http://{HEAD}:8265", 8080, envs[0] | IMPATIENT)
    store = ["--object-store-memory", "200000000"]
    with ExitStack() as stack:
        command = [*inside(hosts[0]), "bash", str(LOCAL / "head.sh"), "--num-cpus", "2", *store]
        stack.enter_context(running(command, head.env, folders[0] / "head.log"))
        wait_for(lambda: "Ray runtime started" in (folders[0] / "head.log").read_text())
        (folders[1] / ".ray").mkdir()
        (folders[1] / ".ray" / "auth_token").write_text(head.token.read_text())
        command = [*inside(hosts[1]), "bash", str(LOCAL / "worker.sh"), f"{HEAD}:6379", "--num-cpus", "1", *store]
        stack.enter_context(running(command, envs[1], folders[1] / "worker.log"))
        wait_for(lambda: "Ray runtime started" in (folders[1] / "worker.log").read_text())
        yield head
        for host in hosts:  # the worker that was cut off ends itself only after a while
            for process in processes(host):
                process.kill()


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_em_outlives_the_loss_of_a_node_and_ends_with_the_rows_of_an_undisturbed_run(
    hosts, head, tiny_turbo, digits, tmp_path
):
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    config = {
        "pairs": str(pairs),
        "model": str(tiny_turbo),
        "work_dir": str(tmp_path / "em"),
        "cycles": 1,
        "assign": {**ASSIGN, "workers": "2"},
        "train": {"epochs": 1, "batch_size": 8},
    }
    (tmp_path / "em.yaml").write_text(yaml.safe_dump(config))
    submit = [
        *inside(hosts[0]),
        Path(sys.executable).parent / "ortho",
        "submit",
        "em",
        "--config",
        tmp_path / "em.yaml",
    ]
    submit = [str(word) for word in submit]

    refused = subprocess.run(submit, env=head.client(token=False), capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "accepts jobs with its token only" in refused.stderr

    parts = tmp_path / "em" / "cycle_01" / "assignments"
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(submit, env=head.client(), stdout=log, stderr=log, cwd=tmp_path)
    wait_for(lambda: (len(list(parts.glob("part-*"))) >= 3 and computes(hosts[1])) or job.poll() is not None)
    assert job.poll() is None, (tmp_path / "log").read_text()
    assert computes(hosts[0])
    ip("-n", hosts[1], "link", "set", "link0", "down")
    done_before = len(list(parts.glob("part-*")))
    assert done_before < 12
    assert job.wait() == 0, (tmp_path / "log").read_text()

    alone = AssignJob(pairs=pairs, model=tiny_turbo, out=tmp_path / "alone", workers=0, **ASSIGN)
    assert run(alone) == 0
    assert_same(rows(parts), rows(tmp_path / "alone"), loss=0, skew=0)
    summary = json.loads((parts / "summary.json").read_text())
    assert (summary["rows"], summary["assigned"], summary["quarantined"]) == (24, 24, 0)
    assert (tmp_path / "em" / "cycle_01" / "train" / "checkpoint-final").is_dir()
    assert (tmp_path / "em" / "report.html").is_file()
