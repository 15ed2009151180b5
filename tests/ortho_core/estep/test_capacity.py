import pytest

from ortho_core.estep.capacity import CPU_SLOTS, MOST_SLOTS, round_down, slots_that_fit
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.objective import Reconstruction


@pytest.mark.parametrize(
    ("fit", "slots"), [(-3, 1), (1, 1), (5, 4), (7, 6), (13, 12), (23, 16), (31, 24), (1000, MOST_SLOTS)]
)
def test_slot_counts_are_few_and_never_more_than_fit(fit, slots):
    assert round_down(fit) == slots


def test_without_a_gpu_the_slot_count_is_fixed(generator):
    assert slots_that_fit(generator, AssignConfig(), Reconstruction(generator, AssignConfig())) == CPU_SLOTS
