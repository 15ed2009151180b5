import numpy as np
import pytest

from ortho_core.mstep.size_order import SizeOrder
from ortho_core.records.runs import Runs

#: Three part files, with rows of four sizes; the last size has fewer rows than a batch.
COUNTS = np.array([[20, 5, 9, 1], [16, 0, 11, 2], [13, 8, 0, 0]])
ENDS = np.cumsum(COUNTS.reshape(-1)).reshape(COUNTS.shape)
RUNS = [Runs((ENDS - COUNTS)[:, k], COUNTS[:, k]) for k in range(4)]
ROWS, BATCH = int(COUNTS.sum()), 6


def size_of(row):
    return int(np.searchsorted(ENDS.reshape(-1), row, side="right")) % 4


def epoch(order, number, rank=0, world=1):
    return [order.groups(number, step, rank, world) for step in range(order.updates)]


@pytest.mark.parametrize("window", [10**6, 24])
def test_no_row_is_lost_or_twice_beyond_the_last_incomplete_batch(window):
    order = SizeOrder(RUNS, BATCH, seed=3, window=window)
    assert (order.rows, order.updates) == (ROWS, ROWS // BATCH)
    left_out = []
    for number in range(4):
        seen = [row for groups in epoch(order, number) for group in groups for row in group.rows.tolist()]
        assert len(seen) == len(set(seen)) == order.updates * BATCH
        left_out.append(set(range(ROWS)) - set(seen))
    # Other rows in every epoch, so that all are trained on, those of the smallest size too.
    assert not set.intersection(*left_out)


def test_an_update_has_rows_of_one_size_but_for_the_remainders():
    order = SizeOrder(RUNS, BATCH, seed=3)
    updates = epoch(order, 0)
    for groups in updates:
        assert sum(len(group.rows) for group in groups) == BATCH
        for group in groups:
            assert len({size_of(row) for row in group.rows}) == 1
    whole = [groups for groups in updates if groups[0].weights is None]
    assert len(whole) == sum(len(runs) // BATCH for runs in RUNS)
    assert all(len(groups) == 1 for groups in whole)
    # The sizes of the batches are mixed, and their order differs from epoch to epoch.
    sizes = [[size_of(groups[0].rows[0]) for groups in epoch(order, number)] for number in range(2)]
    assert sizes[0] != sorted(sizes[0])
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize("world", [2, 3])
def test_all_workers_have_the_same_sizes_and_together_the_same_rows(world):
    alone, shared = SizeOrder(RUNS, BATCH, seed=3), SizeOrder(RUNS, BATCH, seed=3)
    for number in range(2):
        by_rank = [epoch(shared, number, rank, world) for rank in range(world)]
        for step, expected in enumerate(epoch(alone, number)):
            mine = [by_rank[rank][step] for rank in range(world)]
            shapes = [[(size_of(g.rows[0]), len(g.rows)) for g in groups] for groups in mine]
            assert shapes == shapes[:1] * world
            rows, weights = [], 0.0
            for groups in mine:
                for group in groups:
                    real = group.rows if group.weights is None else group.rows[group.weights > 0]
                    rows += real.tolist()
                    weights += len(real) * world / BATCH if group.weights is None else group.weights.sum()
            assert sorted(rows) == sorted(row for group in expected for row in group.rows.tolist())
            # The mean over the workers of the weighted sums is the mean over the rows.
            assert weights / world == pytest.approx(1)


def test_only_the_seed_decides_and_any_update_can_be_asked_for():
    one, other = SizeOrder(RUNS, BATCH, seed=3, window=24), SizeOrder(RUNS, BATCH, seed=4, window=24)
    forward = {(e, s): one.groups(e, s) for e in range(2) for s in range(one.updates)}
    backward = SizeOrder(RUNS, BATCH, seed=3, window=24)
    for place in reversed(forward):
        for a, b in zip(forward[place], backward.groups(*place), strict=True):
            np.testing.assert_array_equal(a.rows, b.rows)
    assert any(
        a.rows.tolist() != b.rows.tolist()
        for s in range(one.updates)
        for a, b in zip(one.groups(0, s), other.groups(0, s), strict=False)
    )


def test_rows_of_a_size_are_found_in_its_runs():
    runs = Runs(np.array([4, 10, 30]), np.array([2, 0, 3]))
    assert runs.rows(range(5)).tolist() == [4, 5, 30, 31, 32]
    assert (len(runs), runs.spread(2), runs.spread(99)) == (5, [4, 30], [4, 5, 30, 31, 32])
