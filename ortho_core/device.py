"""Devices: which one, and copies to and from it that do not wait."""

import torch
from torch import Tensor

from ortho_core.errors import UserError


def pick_device(device: str) -> str:
    """`auto` is the GPU where there is one. Raises UserError for a device that torch does not have."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Through pinned memory: a copy from ordinary memory would first wait for all that the GPU still has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensor: Tensor) -> Tensor:
    """In host memory; from a GPU it is there only once the stream has come this far (record an event, and wait for it)."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
