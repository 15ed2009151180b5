"""The script for Slurm, without a Slurm: that bash accepts it, what it refuses, and what it would run where."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray.scripts.scripts import cli

from tests.conftest import ROOT

SCRIPT = ROOT / "cluster" / "slurm" / "ortho.sbatch"
#: What Slurm sets in a job on one node.
ONE_NODE = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "6", "ORTHO_DRY_RUN": "1"}
#: With this Python's environment on the path.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
VERB = ["em", "--pairs", "/data/my pairs", "--work-dir", "/data/runs/first"]


def script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ORTHO_", "RAY_"))}
    env = kept | {"PATH": PATH} | variables
    return subprocess.run(
        [shutil.which("bash"), SCRIPT, *arguments], env=env, capture_output=True, text=True, check=False
    )


def options(**variables: str) -> dict[str, str]:
    """The options for `ray start` in a job with these variables."""
    done = script(*VERB, **ONE_NODE | variables)
    assert done.returncode == 0, done.stderr
    before, _, _ = done.stdout.partition(" -- ")
    return dict(word.split("=", 1) for word in before.split() if word.startswith("--") and "=" in word)


def test_bash_and_shellcheck_find_no_fault():
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True, check=False).stderr == b""
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ([], ONE_NODE, "usage: sbatch [OPTIONS OF sbatch] cluster/slurm/ortho.sbatch VERB ..."),
        (VERB, {}, "this is not a Slurm job; submit it: sbatch cluster/slurm/ortho.sbatch em --pairs"),
        (VERB, {**ONE_NODE, "PATH": "/nowhere"}, "ray and ortho are not on the path; activate"),
        (
            VERB,
            {**ONE_NODE, "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "far"},
            "the address of far is not known; set ORTHO_HEAD_ADDRESS",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(arguments, variables, said):
    done = script(*arguments, **variables)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_it_asks_slurm_to_requeue_it_and_to_say_when_the_time_is_near():
    asked = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=B:TERM@120", "--ntasks-per-node=1", "--open-mode=append"} <= set(asked)


def test_every_node_starts_ray_with_what_slurm_gave():
    given = options()
    assert (given["--num-cpus"], given["--num-gpus"]) == ("6", "0")
    assert "--memory" not in given
    given = options(SLURM_CPUS_PER_TASK="4", SLURM_GPUS_ON_NODE="2", SLURM_MEM_PER_NODE="10000")
    assert (given["--num-cpus"], given["--num-gpus"]) == ("4", "2")
    both = int(given["--memory"]) + int(given["--object-store-memory"])
    assert both == pytest.approx(10000 * 2**20, rel=1e-5)
    assert int(options(SLURM_MEM_PER_CPU="1000")["--memory"]) == pytest.approx(4200 * 2**20, rel=1e-5)


def test_two_jobs_on_one_node_have_no_port_in_common_and_none_that_systems_give_away():
    seen: set[int] = set()
    for number in ("1199", "1200", "1201", "98765"):
        done = script(*VERB, **ONE_NODE | {"SLURM_JOB_ID": number})
        gcs = int(done.stdout.partition("--address 127.0.0.1:")[2].split()[0])
        given = options(SLURM_JOB_ID=number)
        ports = [gcs, *(int(v) for n, v in given.items() if n.endswith("-port") and not n.endswith("worker-port"))]
        assert len(ports) == 9
        assert all(20000 <= port < 32768 for port in ports)
        assert not seen & set(ports)
        assert len(set(ports)) == 9
        seen |= set(ports)


def test_ray_knows_all_options_of_the_nodes():
    known = {
        name for parameter in cli.commands["start"].params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    words = script(*VERB, **ONE_NODE).stdout.partition("--min-nodes 1 ")[2].partition(" -- ")[0].split()
    assert len(words) > 10
    assert {word.partition("=")[0] for word in words} <= known


def test_a_second_node_has_none_of_the_options_that_are_the_heads():
    head, other = options(SLURM_NODEID="0"), options(SLURM_NODEID="1")
    assert head.keys() - other.keys() == {"--include-dashboard", "--ray-client-server-port", "--dashboard-port"}
    assert head == head | other
