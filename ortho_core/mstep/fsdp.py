"""Networks that do not fit one GPU: parameters, gradients and optimiser state sharded over the workers (FSDP2)."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_weights(network: nn.Module, device: torch.device, workers: int) -> nn.Module:
    """Shard a network's weights in place over all workers; each computes with whole layers, gathered when their turn comes.

    The units that are gathered at once are the modules that diffusers names as not to be split, the innermost ones.
    """
    # Sharding refuses weights in channels-last order, which is how a GPU's convolutions have them.
    network.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (workers,))
    names = set(getattr(network, "_no_split_modules", None) or ())
    units = [module for module in network.modules() if type(module).__name__ in names]
    inner = [u for u in units if not any(m is not u and type(m).__name__ in names for m in u.modules())]
    for unit in inner:
        fully_shard(unit, mesh=mesh)
    # Else what is in no unit stays gathered after a pass without gradients, and misses weights that are lent meanwhile.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network
