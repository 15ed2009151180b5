import pytest

from ortho_core.pairs.rows import Failure, Shard
from rayjobs.pool.ledger import Task
from rayjobs.pool.messages import Receipt, Work


@pytest.mark.parametrize("task", [Task(1), Task(1, 2, frozenset({70, 64}))])
def test_work_and_receipt_survive_the_way_through_a_table(task):
    far = Shard(0, 900, 2, "b.parquet", 0, over=64)
    work = Work(task, Shard(1, 64, 64, "a.parquet", 3, over=70, rest=(far,)))
    assert Work.of_row(work.to_row()) == work
    assert work.rows == (64 if task.only is None else 2)
    failures = (Failure("a ↯", 70, "missing-image", "gone"),)
    for receipt in (Receipt(1), Receipt(1, 3, 1, 0.1 + 0.2, failures, "error", "example", "a; b")):
        assert Receipt.of_row(receipt.to_row()) == receipt
