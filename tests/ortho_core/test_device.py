import pytest
import torch

from ortho_core.device import Constant, devices, pick_device, to_device, to_host
from ortho_core.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_without_a_choice_it_is_the_gpu_where_there_is_one():
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "cuda:", "mps:7", "xpu:0", "meta", "vulkan", "", "mps"])
def test_a_device_that_is_not_here_is_refused_in_a_short_line_that_names_those_that_are(device):
    if device in devices():
        pytest.skip("it is here")
    with pytest.raises(UserError) as refused:
        pick_device(device)
    message = str(refused.value)
    assert message.startswith(f"--device {device} is ")
    assert message.endswith(f"; accepted: {', '.join(['auto', *devices()])}")
    assert len(message) < 200
    assert "\n" not in message


def test_a_device_that_is_there_and_does_not_work_is_refused_with_the_first_line_of_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices()[1:3] == ["cuda:0", "cuda:1"]
    with pytest.raises(
        UserError, match=r"^--device cuda:2 is not among the 2 there are; accepted: auto, cpu, cuda:0, cuda:1"
    ):
        pick_device("cuda:2")

    def broken(*_, **__):
        raise RuntimeError("CUDA error: out of order\nmore of it")

    monkeypatch.setattr(torch, "empty", broken)
    with pytest.raises(UserError, match=r"^--device cuda:1 does not work: CUDA error: out of order$"):
        pick_device("cuda:1")


def test_a_constant_is_copied_to_a_place_once():
    values = torch.tensor([0.1, 0.2], dtype=torch.float64)
    constant, like = Constant(values), torch.zeros(3)
    assert constant.beside(like) is constant.beside(torch.ones(1))
    assert torch.equal(constant.beside(like), like.new_tensor([0.1, 0.2]))
    assert torch.equal(constant.beside(like.double()), values)


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
