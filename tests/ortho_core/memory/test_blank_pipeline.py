import pytest

from benchmarks.memory_real import parts
from tests.ortho_core.memory.conftest import WITHIN


def test_the_parts_of_a_loaded_model_take_what_was_counted_of_a_blank_one(model):
    for part in (*parts(model, 4), *parts(model, 16)):
        assert part.ratio == pytest.approx(1, abs=WITHIN), part
