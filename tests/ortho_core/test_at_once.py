import itertools

import pytest
import torch

from ortho_core.at_once import AtOnce


def little(most):
    def compute(part):
        if part.stop - part.start > most:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
        return list(range(part.start, part.stop))

    return compute


@pytest.mark.parametrize(("most", "size"), [(8, 8), (3, 2), (1, 1)])
def test_parts_are_halved_until_there_is_memory_and_every_row_is_made_once(most, size):
    heard = []
    at_once = AtOnce(8, heard.append)
    assert [*itertools.chain(*at_once(11, little(most)))] == list(range(11))
    assert at_once.size == size
    heard.clear()
    at_once(11, little(most))
    assert heard == []  # what there was memory for is remembered


def test_a_single_row_without_memory_and_other_errors_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        AtOnce(4)(4, little(0))
    with pytest.raises(ZeroDivisionError):
        AtOnce(4)(4, lambda part: 1 // 0)
