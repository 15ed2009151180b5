"""The dtype of a network, and scaling that keeps small gradients in float16.

bfloat16 has the range of float32 and 8 bits of mantissa; float16 has 11 bits and a small range. Networks that predict noise need
the bits: their error is multiplied by the scheduler's sigma (14.6 for SDXL Turbo) on the way to the latent. The range of float16
is too small for small gradients, so these are scaled while they are inside the network.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

#: Range of exponents n for which both 2ⁿ and its inverse are normal float32 numbers.
EXPONENTS = (-126, 126)


def network_dtype(option: str, device: str | torch.device, half: str | None) -> torch.dtype:
    """The dtype for a value of `--dtype`: `auto` is `half` on a GPU (`ModelFolder.half`), and float32 on a CPU or without one."""
    on_a_gpu = torch.device(device).type != "cpu"
    named: torch.dtype = getattr(torch, option if option != "auto" else (on_a_gpu and half) or "float32")
    return named


@contextmanager
def fast_matmul(device: torch.device) -> Iterator[None]:
    """In this block, float32 matrix products may use TF32 (11 bits) on a GPU that has it; convolutions always do."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def run_network(run: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """`run(x.to(dtype)).float()` for x (B, ...) in float32. Operations that stay in float32 use TF32, forward and backward.

    If `dtype` (or autocast's) is float16 and x needs a gradient, each row's gradient is multiplied by a power of two on entering
    the network, so that its largest entry is in [0.5, 1), and divided by it on leaving. Entries that float16 would flush to zero
    survive, and a power of two adds no rounding. The noise is outside: rotations and losses compute in plain float32.
    """
    device = x.device
    x = x.view_as(x)  # a new tensor: the hooks below must apply to this call only
    with fast_matmul(device):
        output = run(x.to(dtype)).float()
    scaled = dtype == torch.float16 or (
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    )
    if not (x.requires_grad and output.requires_grad and (scaled or device.type == "cuda")):
        return output
    fast, exponents = ExitStack(), list[Tensor]()

    def enter(gradient: Tensor) -> Tensor:
        fast.enter_context(fast_matmul(device))
        if not scaled:
            return gradient
        largest = gradient.flatten(1).abs().amax(1)
        # Apple's GPUs have no frexp.
        power = torch.frexp(largest.cpu() if device.type == "mps" else largest).exponent.to(device)
        exponent = torch.where(largest.isfinite(), power, 0).clamp(*EXPONENTS)
        exponents.append(exponent.view(-1, *[1] * (gradient.ndim - 1)))
        return torch.ldexp(gradient, -exponents[-1])

    def leave(gradient: Tensor) -> Tensor:
        fast.close()
        return torch.ldexp(gradient, exponents.pop()) if scaled else gradient

    hooks: Any = (output, x)
    for tensor, hook in zip(hooks, (enter, leave), strict=True):
        tensor.register_hook(hook)
    return output
