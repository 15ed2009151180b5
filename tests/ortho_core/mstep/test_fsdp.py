"""Sharded networks compute what whole ones do."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ortho_core.mstep.fsdp import shard_weights


@pytest.fixture
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_weights_in_channels_last_order_are_sharded_too():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 4, 8, 8)
    expected = network(images).detach()
    sharded = shard_weights(network, torch.device("cpu"), 1)
    torch.testing.assert_close(sharded(images), expected)
