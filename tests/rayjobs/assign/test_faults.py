"""The E-step job when something goes wrong: afterwards the same command ends with the rows of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from ortho_core.errors import BadRow, RunFailed
from ortho_core.framing.framing import Framing
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.pairs.pair_set import PairSet
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import make_plan, run
from rayjobs.assign.worker import search_of
from rayjobs.pool.decoder import RayDecoder
from rayjobs.pool.driver import work_through
from rayjobs.pool.run import ShardedRun
from tests.conftest import ROOT, connect_ray, copy_pairs
from tests.rayjobs.same import assert_same, rows

SETTINGS = {"steps": 3, "rows_per_shard": 2, "slots": 2, "cpus_per_worker": 0.5}
#: Where no worker is what goes wrong: in this process.
HERE = {"workers": "0"}


@pytest.fixture(scope="module", autouse=True)
def cluster(no_ray):
    """A head node, to which a test may add others."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    connect_ray(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def job(pairs, model, out, **options):
    return AssignJob(**{**SETTINGS, "pairs": pairs, "model": model, "out": out, **options})


@pytest.fixture(scope="module")
def undisturbed(tiny_turbo, digits, tmp_path_factory):
    """Twenty-four rows, assigned in this process, one shard after the other: no Ray, nothing to go wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pairs = copy_pairs(digits, folder / "pairs", 24)
    assert run(job(pairs, tiny_turbo, folder / "out", **HERE)) == 0
    return pairs, folder / "out"


def parts(out):
    return list(out.glob("part-*"))


class Running:
    """`run` in a thread, until the block ends; `error` is what it raised."""

    def __init__(self, one: AssignJob) -> None:
        self.job, self.error, self.code = one, None, None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.code = run(self.job)
        except Exception as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join()

    def wait_for_parts(self, out, count):
        while len(parts(out)) < count and self.thread.is_alive():
            time.sleep(0.02)
        assert self.thread.is_alive(), self.error or "the run was over before anything could go wrong"


def workers():
    """The processes of this cluster that hold a model; others may run on the same machine."""
    ours = psutil.Process().children(recursive=True)
    return [process for process in ours if "PoolActor" in " ".join(process.cmdline())]


def test_a_killed_worker_is_replaced(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    with Running(job(pairs, tiny_turbo, tmp_path / "out")) as running:
        running.wait_for_parts(tmp_path / "out", 2)
        (worker,) = workers()
        worker.send_signal(signal.SIGKILL)
    assert (running.error, running.code) == (None, 0)
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)


@pytest.mark.slow
def test_a_lost_node_takes_no_row_along(undisturbed, tiny_turbo, tmp_path, cluster):
    pairs, out = undisturbed
    node = cluster.add_node(num_cpus=1, labels={"zone": "far"})
    cluster.wait_for_nodes()
    options = {"workers": 2, "node_labels": {"zone": "far"}}
    with Running(job(pairs, tiny_turbo, tmp_path / "out", **options)) as running:
        running.wait_for_parts(tmp_path / "out", 2)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1, labels={"zone": "far"})
    assert (running.error, running.code) == (None, 0)
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)


def test_two_drivers_on_one_folder_leave_one_of_everything(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    one = job(pairs, tiny_turbo, tmp_path / "out")
    with Running(one) as first, Running(one) as second:
        pass
    assert [first.error, second.error, first.code, second.code] == [None, None, 0, 0]
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)
    assert len(parts(tmp_path / "out")) == 12
    assert not list((tmp_path / "out").glob(".*"))


def test_death_between_writing_a_part_and_publishing_it_leaves_nothing_behind(undisturbed, tiny_turbo, tmp_path):
    pairs, out = undisturbed
    one = job(pairs, tiny_turbo, tmp_path / "out")
    program = """
import os, signal, sys
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run

link = os.link

def dies(source, target):
    if "part-000001" in os.fspath(target):
        os.kill(os.getpid(), signal.SIGKILL)
    link(source, target)

os.link = dies
run(AssignJob.model_validate_json(sys.argv[1]))
"""
    alone = one.model_copy(update=HERE)
    argv = [sys.executable, "-W", "ignore", "-c", program, alone.model_dump_json()]
    done = subprocess.run(argv, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(parts(tmp_path / "out")) == 1
    assert len(list((tmp_path / "out").glob(".*.partial"))) == 1
    assert run(alone) == 0
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_part_that_was_altered_is_made_again(undisturbed, tiny_turbo):
    pairs, out = undisturbed
    before = rows(out)
    part = sorted(parts(out))[3]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 0xFF
    part.write_bytes(content)
    assert run(job(pairs, tiny_turbo, out, **HERE)) == 0
    assert_same(rows(out), before, loss=0, skew=0)


def test_an_input_that_vanishes_ends_the_run_and_its_return_finishes_it(undisturbed, tiny_turbo, tmp_path):
    _, out = undisturbed
    pairs = copy_pairs(undisturbed[0], tmp_path / "pairs", 24)
    one = job(pairs, tiny_turbo, tmp_path / "out")
    with Running(one) as running:
        running.wait_for_parts(tmp_path / "out", 2)
        (pairs / "pairs.jsonl").rename(tmp_path / "elsewhere")
    assert isinstance(running.error, RunFailed)
    assert str(running.error).startswith(f"cannot read {pairs}/pairs.jsonl: ")
    (tmp_path / "elsewhere").rename(pairs / "pairs.jsonl")
    assert run(one) == 0
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)


def test_rows_that_failed_are_tried_again_when_asked_and_only_those(undisturbed, tiny_turbo, tmp_path):
    _, out = undisturbed
    pairs = copy_pairs(undisturbed[0], tmp_path / "pairs", 24)
    images = [pairs / "images" / f"{i:04d}.png" for i in (5, 10, 11, 20)]  # 10 and 11 are a shard of their own
    for image in images:
        image.rename(image.with_suffix(".away"))
    one = job(pairs, tiny_turbo, tmp_path / "out", **HERE)
    assert run(one) == 3
    published = {p.name: p.read_bytes() for p in parts(tmp_path / "out")}
    for image in images[:3]:
        image.with_suffix(".away").rename(image)
    assert run(one) == 3
    assert {p.name for p in parts(tmp_path / "out")} == set(published)
    again = one.model_copy(update={"retry_failures": True})
    assert run(again) == 3
    images[3].with_suffix(".away").rename(images[3])
    assert run(again) == 0
    assert run(again) == 0
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)
    assert {n: (tmp_path / "out" / n).read_bytes() for n in published} == published
    assert sorted(p.name[12:].partition(".")[2] for p in parts(tmp_path / "out")).count("r1.parquet") == 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["assigned"], summary["quarantined"], summary["rows_this_run"]) == (24, 0, 1)


class Poisoned(PairSet):
    """Images named 0003.png kill the process that decodes them."""

    def framed(self, chunk, framing):
        if any(pair.image.endswith("0003.png") for pair in chunk):
            os._exit(1)
        return super().framed(chunk, framing)


def test_an_image_that_kills_its_process_is_quarantined_and_its_neighbours_are_not(undisturbed):
    pairs = Poisoned(undisturbed[0])
    (shard,) = pairs.shards(24)
    chunks = iter([list(pairs.read(shard))[start : start + 8] for start in (0, 8, 16)])
    decoder = RayDecoder(pairs, 0.0)
    done = [item for chunk in decoder(pairs, chunks, Framing.at((8, 8))) for item in chunk]
    assert [pair.row for pair, _ in done] == list(range(24))
    bad = [(pair.row, outcome.reason) for pair, outcome in done if isinstance(outcome, BadRow)]
    assert bad == [(3, "kills-decoder")]
    assert decoder.killed == 4  # with its neighbours, then three times alone


class Deadly(PairSet):
    """The first four times that anyone reads shard 2, the process ends; the marks are beside the pair set."""

    def read(self, shard):
        marks = ROOT.__class__(self.location) / "marks"
        if shard.index == 2:
            marks.mkdir(exist_ok=True)
            count = len(list(marks.iterdir()))
            if count < 4:
                (marks / str(count)).touch()
                os._exit(1)
        return super().read(shard)


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_quarantined_and_the_run_ends(undisturbed, tiny_turbo, tmp_path):
    _, out = undisturbed
    pairs = copy_pairs(undisturbed[0], tmp_path / "pairs", 24)
    one = job(pairs, tiny_turbo, tmp_path / "out")
    model = ModelFolder.open(tiny_turbo)
    plan, _, shards = make_plan(one, model)
    whole_run = ShardedRun(one.out, plan)
    work_through(one, whole_run.ledger, whole_run.survey, shards, search_of(one, model, plan, Deadly(pairs)))
    whole_run.finish()
    assert whole_run.conclude(whole_run.summary(one), "rows could be assigned") == 3
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [(f["row"], f["reason"]) for f in failures] == [(4, "worker-died"), (5, "worker-died")]
    kept = {name: row for name, row in rows(out).items() if int(name[:6]) not in (4, 5)}
    assert_same(rows(tmp_path / "out"), kept, loss=0, skew=0)
    assert run(one.model_copy(update={"retry_failures": True})) == 0
    assert_same(rows(tmp_path / "out"), rows(out), loss=0, skew=0)
