"""`cluster/slurm/ortho.sbatch` on a real Slurm of two nodes; without Slurm's programs there is nothing to run it on."""

import json

import pytest

from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run
from tests.cluster.slurm import missing, two_nodes
from tests.cluster.test_two_nodes import HEAD, WORKER, two_hosts, wait_for
from tests.conftest import ROOT, copy_pairs
from tests.rayjobs.same import assert_same, rows

SCRIPT = ROOT / "cluster" / "slurm" / "ortho.sbatch"
ASSIGN = {"steps": 20, "rows_per_shard": 2, "slots": 2}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with two_hosts() as names:
        hosts = [["nsenter", f"--net=/run/netns/{name}"] for name in names]  # `ip netns exec` hides the control groups
        with two_nodes(tmp_path_factory.mktemp("slurm"), hosts, (HEAD, WORKER)) as slurm:
            yield slurm


@pytest.fixture(scope="module")
def pairs(digits, tmp_path_factory):
    return copy_pairs(digits, tmp_path_factory.mktemp("pairs") / "pairs", 24)


@pytest.fixture(scope="module")
def undisturbed(pairs, tiny_turbo, tmp_path_factory):
    """The rows, assigned in this process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert run(AssignJob(pairs=pairs, model=tiny_turbo, out=out, workers=0, **ASSIGN)) == 0
    return rows(out)


def submit(slurm, sbatch: list[str], pairs, model, out, *more: str) -> str:
    """The number of a job that assigns `pairs`."""
    verb = ["assign", "--pairs", str(pairs), "--model", str(model), "--out", str(out), *more]
    for name, value in ASSIGN.items():
        verb += [f"--{name.replace('_', '-')}", str(value)]
    return slurm.run("sbatch", "--parsable", *sbatch, SCRIPT, *verb)


def parts(out) -> int:
    return len(list(out.glob("part-*")))


def test_a_job_on_two_nodes_that_is_told_to_end_and_then_requeued_ends_with_the_rows_of_an_undisturbed_run(
    slurm, pairs, undisturbed, tiny_turbo, tmp_path
):
    out = tmp_path / "out"
    job = submit(slurm, ["--nodes=2", "--cpus-per-task=1"], pairs, tiny_turbo, out, "--workers=2")
    wait_for(lambda: parts(out) >= 1 or slurm.job(job)["JobState"] in ENDED, 900)
    slurm.run("scancel", "--batch", "--signal=TERM", job)  # as Slurm does before the time limit
    wait_for(lambda: slurm.job(job)["Restarts"] == "1", 300)
    assert "received SIGTERM" in slurm.log(job)
    before = parts(out)
    assert before < 12

    wait_for(lambda: parts(out) > before or slurm.job(job)["JobState"] in ENDED, 900)
    slurm.run("scontrol", "requeue", job)  # as Slurm does when a node is lost: nobody is told anything
    again = parts(out)
    assert again < 12
    wait_for(lambda: slurm.job(job)["JobState"] in ENDED, 900)
    done = slurm.job(job)
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("COMPLETED", "0:0", "2"), slurm.log(job)
    assert_same(rows(out), undisturbed, loss=0, skew=0)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["assigned"], summary["quarantined"]) == (24, 24, 0)


def test_two_jobs_on_one_node_do_not_meet_and_each_ends_with_its_verbs_exit_code(
    slurm, pairs, undisturbed, tiny_turbo, tmp_path
):
    on_one = ["--nodelist=one", "--cpus-per-task=1", "--mem=1500"]
    works = submit(slurm, on_one, pairs, tiny_turbo, tmp_path / "out")
    wait_for(lambda: (tmp_path / "out" / "plan.json").exists() or slurm.job(works)["JobState"] in ENDED, 900)
    fails = submit(slurm, on_one, tmp_path / "nothing", tiny_turbo, tmp_path / "other")
    wait_for(lambda: slurm.job(fails)["JobState"] in ENDED, 900)
    wait_for(lambda: slurm.job(works)["JobState"] in ENDED, 900)
    assert slurm.job(fails)["ExitCode"] == "1:0", slurm.log(fails)
    assert slurm.job(works)["ExitCode"] == "0:0", slurm.log(works)
    assert_same(rows(tmp_path / "out"), undisturbed, loss=0, skew=0)
