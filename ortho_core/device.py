"""The choice of a device, and copies to and from it that do not block."""

import torch
from torch import Tensor

from ortho_core.errors import UserError

#: Names of the kinds of devices in messages. ROCm presents AMD's GPUs as `cuda`.
GPU_KINDS = {"cuda": "NVIDIA's GPUs, and AMD's with ROCm", "mps": "Apple's GPU", "xpu": "Intel's GPUs"}


def pick_device(device: str) -> str:
    """`auto` is `cuda` if there is one, else the CPU. Raises UserError, with the available devices, for any unavailable one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = device.partition(":")
    count = _count(kind)
    if count and (not colon or (number.isdecimal() and int(number) < count)):
        try:
            torch.empty(0, device=device)
            return device
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {device} does not work: {str(error).splitlines()[0][:200]}") from error
    if kind != "cpu" and kind not in GPU_KINDS:
        wrong = "is not a device"
    elif count:
        wrong = f"is not among the {count} there {'are' if count > 1 else 'is'}"
    else:
        wrong = f"is not available ({GPU_KINDS[kind]}; PyTorch {torch.__version__} finds none)"
    raise UserError(f"--device {device} {wrong}; accepted: {', '.join(['auto', *devices()])}")


def devices() -> list[str]:
    """The devices of this machine, as options name them."""
    return ["cpu", *(f"{kind}:{k}" for kind in GPU_KINDS for k in range(_count(kind)))]


def _count(kind: str) -> int:
    """Number of devices of a kind; 0 for an unknown kind."""
    if kind == "cpu":
        return 1
    module = getattr(torch, kind) if kind in GPU_KINDS else None
    return int(module.device_count()) if module is not None and module.is_available() else 0


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64; moved to host memory if the device has no float64, as Apple's GPUs."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class Constant:
    """A constant tensor of a computation. It is copied to each device once, so that no step waits for a copy."""

    def __init__(self, host: Tensor) -> None:
        self.host = host
        self._there: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def beside(self, tensor: Tensor) -> Tensor:
        """The constant on the device of `tensor` and in its dtype."""
        place = tensor.device, tensor.dtype
        if place not in self._there:
            # Converted on the host: Apple's GPUs have no float64.
            self._there[place] = to_device(self.host.to(tensor.dtype), tensor.device)
        return self._there[place]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device through pinned memory: a copy from pageable memory would wait for the GPU's queued work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory. A copy from a GPU is complete only once the stream reaches it: record an event and wait."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
