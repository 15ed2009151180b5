import numpy as np
import pytest

from ortho_core.mstep.row_order import Order

#: Parts of uneven sizes, one of them empty; 1000 rows.
STARTS = np.cumsum([0, 130, 7, 256, 0, 90, 200, 61, 256])


def epoch(order, number=0, rank=0, world=1):
    return [order.share(number, step, rank, world) for step in range(order.updates)]


@pytest.mark.parametrize("window", [1000, 96, 7], ids=["whole", "lanes", "narrow lanes"])
def test_every_epoch_has_every_row_once_but_the_incomplete_batch(window):
    order = Order(STARTS, batch_size=24, seed=1, window=window)
    assert order.updates == 41
    rows = np.concatenate(epoch(order))
    assert len(rows) == len(set(rows)) == 41 * 24
    assert 0 <= rows.min() <= rows.max() < 1000
    other = np.concatenate(epoch(order, 1))
    assert set(rows) != set(other)
    np.testing.assert_array_equal(np.concatenate(epoch(Order(STARTS, 24, 1, window))), rows)
    assert (np.concatenate(epoch(Order(STARTS, 24, 2, window))) != rows).any()


@pytest.mark.parametrize("window", [1000, 96])
@pytest.mark.parametrize("world", [2, 8])
def test_workers_split_the_batch_of_one_worker(window, world):
    order = Order(STARTS, 24, 1, window)
    apart = [epoch(Order(STARTS, 24, 1, window), 3, rank, world) for rank in range(world)]
    for step, whole in enumerate(epoch(order, 3)):
        np.testing.assert_array_equal(np.concatenate([share[step] for share in apart]), whole)


def test_it_can_be_asked_for_any_update_in_any_order():
    order = Order(STARTS, 24, 1, 96)
    forward = {(e, s): order.share(e, s) for e in range(2) for s in range(order.updates)}
    for key in reversed(forward):
        np.testing.assert_array_equal(order.share(*key), forward[key])


def test_a_worker_of_a_large_set_reads_few_parts_at_a_time():
    """What a random permutation of the whole would not give: 8 lanes touch about 8 parts between them, of 512."""
    starts = np.arange(513) * 64
    order = Order(starts, 32, 0, window=32 * 16)
    parts = np.stack([order.share(0, step, 1, 4) // 64 for step in range(16)])
    assert len(np.unique(parts)) <= 16
    whole = Order(starts, 32, 0, window=10**6)
    assert len(np.unique(np.stack([whole.share(0, step, 1, 4) // 64 for step in range(16)]))) > 60


def test_rows_of_one_update_come_from_all_over_the_set():
    starts = np.arange(513) * 64
    order = Order(starts, 32, 0, window=32 * 16)
    for rows in epoch(order)[:20]:
        assert len(np.unique(rows // 64)) == 32
    # The parts of a few hundred updates are spread evenly over the set.
    rows = np.concatenate(epoch(order)[:400])
    quarters = np.histogram(rows, bins=4, range=(0, 512 * 64))[0]
    assert quarters.min() > 0.7 * len(rows) / 4
