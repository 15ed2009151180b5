"""The feed of a training worker against the data it is made from, also when its process dies midway."""

import os
import time

import numpy as np
import psutil
import pytest

from ortho_core.errors import UserError
from ortho_core.mstep.data import MatchedData
from ortho_core.mstep.row_order import Order
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.assignments import Assignments
from rayjobs.train.feed import ahead, feed
from tests.rayjobs.train.training import altered

pytestmark = pytest.mark.usefixtures("ray_session")


class Slow(MatchedData):
    """So slow that it is still at work when a test has had its first update."""

    def share(self, epoch, step, rank=0, world=1):
        time.sleep(0.1)
        return super().share(epoch, step, rank, world)


def data(assigned, kind=MatchedData, **options):
    assignments = Assignments(assigned[1])
    order = Order(assignments.starts, 6, 0)
    settings = {"pairs": PairSet(assigned[0]), "preserve_rows": 4, **options}
    return kind(assignments, order, (4, 8, 8), (32, 32), "matched", 3, **settings)


def assert_shares(found, source, start, stop, rank=0, world=1):
    shares = list(found)
    assert len(shares) == stop - start
    for update, share in zip(range(start, stop), shares, strict=True):
        expected = source.share(*divmod(update, source.order.updates), rank, world)
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(share, name), value)
        assert share.noise.flags.writeable


def test_shares_arrive_in_order_whoever_reads_them_and_from_any_start(assigned):
    source = data(assigned, needs_images=True)
    # Over the end of an epoch of four updates; the second of two workers; two readers.
    assert_shares(feed(source, 3, 10, rank=1, world=2, readers=2), source, 3, 10, 1, 2)


def test_a_reader_that_dies_is_replaced_and_the_stream_is_the_same(assigned):
    source = data(assigned, Slow)
    shares = feed(source, 0, 24, rank=0, world=1, readers=1)
    first = next(shares)
    readers = [
        p for p in psutil.Process(os.getpid()).children(recursive=True) if "ShareReader" in " ".join(p.cmdline())
    ]
    assert readers
    for reader in readers:
        reader.kill()
    assert_shares([first, *shares], data(assigned), 0, 24)


def test_what_is_wrong_with_the_data_is_told_as_it_would_be_without_ray(assigned, tmp_path):
    bad, name = altered(assigned, tmp_path / "bad", 20, skew=lambda skew: [skew[0] + 0.1, *skew[1:]])
    says = rf"^{tmp_path}/bad: the rebuilt noise of \['{name}'\] does not match its checksum; assign again$"
    with pytest.raises(UserError, match=says):
        list(feed(data(bad), 0, 4, rank=0, world=1, readers=1))


def test_fetching_ahead_keeps_the_order_and_hands_errors_on():
    started = []

    def source(count):
        for k in range(count):
            started.append(k)
            yield k
        raise UserError("the end")

    fetched = ahead(source(3))
    found = []
    with pytest.raises(UserError, match="the end"):
        found.extend(fetched)
    assert found == started == [0, 1, 2]
    assert list(ahead(iter([]))) == []
