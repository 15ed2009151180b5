from dataclasses import replace

from rayjobs.pool.ledger import Task
from rayjobs.pool.messages import Work
from rayjobs.pool.worker import DEATHS, OwnProcess, PoolWorker
from tests.rayjobs.pool.lengths import Lengths, begin


def test_a_shard_that_was_begun_too_often_is_quarantined_whole(pairs, tmp_path):
    ledger, shards = begin(pairs, tmp_path / "out")
    place = OwnProcess("cpu", 1)
    worker = PoolWorker(Lengths(pairs), ledger, place)
    for _ in range(DEATHS):
        place.attempts.begin(2)
    receipt = worker.work(Work(Task(2), shards[2]))
    assert [(failure.row, failure.reason) for failure in receipt.failures] == [
        (4, "worker-died"),
        (5, "missing-prompt"),
    ]
    assert receipt.assigned == 0
    assert worker.work(Work(Task(3), shards[3])).assigned == 2


def test_what_was_published_is_not_searched_again(pairs, tmp_path):
    ledger, shards = begin(pairs, tmp_path / "out")
    work = Work(Task(2), shards[2])
    first = PoolWorker(Lengths(pairs), ledger, OwnProcess("cpu", 1)).work(work)
    second = PoolWorker(Lengths(pairs), ledger, OwnProcess("cpu", 1))
    assert second.work(work) == replace(first, example="", notes="")
    assert second.searcher.shards == 0
