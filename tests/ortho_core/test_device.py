import pytest
import torch

from ortho_core.device import pick_device, to_device, to_host
from ortho_core.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_without_a_choice_it_is_the_gpu_where_there_is_one():
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", ""])
def test_a_device_that_torch_has_not_is_told_in_one_line(device):
    with pytest.raises(UserError, match=f"^--device {device}: .+$"):
        pick_device(device)


def test_what_is_where_it_should_be_is_not_copied():
    here = torch.arange(3.0)
    assert to_device(here, torch.device("cpu")) is here
    assert to_host(here) is here


@needs_gpu
def test_numbers_come_back_from_the_gpu_once_it_has_come_so_far():
    there = to_device(torch.arange(1e6), torch.device("cuda"))
    back = to_host(2 * there)
    torch.cuda.synchronize()
    assert torch.equal(back, 2 * torch.arange(1e6))
    assert back.is_pinned()
