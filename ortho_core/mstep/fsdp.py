"""Networks that do not fit one GPU: parameters, gradients and optimiser state sharded over the workers (FSDP2)."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_weights(network: nn.Module, device: torch.device, workers: int) -> nn.Module:
    """Shard a network's weights in place over all workers. Each worker computes whole layers, gathered when they are needed.

    A unit that is gathered at once is an innermost module of those in diffusers' `_no_split_modules`.
    """
    # Sharding does not support the channels-last order that convolution weights have on a GPU.
    network.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (workers,))
    names = set(getattr(network, "_no_split_modules", None) or ())
    units = [module for module in network.modules() if type(module).__name__ in names]
    inner = [u for u in units if not any(m is not u and type(m).__name__ in names for m in u.modules())]
    for unit in inner:
        fully_shard(unit, mesh=mesh)
    # Else weights outside all units stay gathered after a pass without gradients, and miss weights that are swapped in later.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network
