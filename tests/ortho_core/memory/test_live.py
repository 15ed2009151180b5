import pytest
import torch

from ortho_core.memory.live import LiveBytes, without_numbers


@pytest.mark.parametrize("blank", [False, True], ids=["numbers", "no-numbers"])
def test_a_view_of_what_was_there_before_takes_nothing(blank):
    weight = torch.ones(64, 256)
    with without_numbers() if blank else LiveBytes() as live:
        assert live.peak_of(lambda: weight.t()[:, 3:]) == 0
        assert live.peak_of(lambda: torch.ones(2, 256) @ weight.t()) == 2 * 256 * 4 + 2 * 64 * 4
        kept = weight * 2
        assert live.live == weight.nbytes
        del kept
        assert live.live == 0


def test_the_host_reads_one_where_there_is_no_number():
    with without_numbers():
        assert torch.zeros(3).sum().item() == 1
        assert isinstance(torch.zeros(3, dtype=torch.long).max().item(), int)
