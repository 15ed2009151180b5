"""What a network computes in, and how gradients come through it whole.

Half precision differs in what it loses. bfloat16 has the range of float32 and 8 bits of mantissa, float16 has 11 bits and little
range. Networks that predict noise need the bits: their error is multiplied by the scheduler's sigma (14.6 for SDXL Turbo) on the
way to the latent. The range that float16 lacks is that of small gradients, so these are scaled while they are inside it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

#: Of the powers of two that are float32, and whose inverses are.
EXPONENTS = (-126, 126)


def network_dtype(asked: str, device: str | torch.device, *, halves: bool = True) -> torch.dtype:
    """The dtype that `--dtype` asks for: `auto` is float32 on a CPU, and on a GPU float16 for a network that `halves`."""
    if asked != "auto":
        named: torch.dtype = getattr(torch, asked)
        return named
    return torch.float16 if halves and torch.device(device).type != "cpu" else torch.float32


@contextmanager
def fast_matmul(device: torch.device) -> Iterator[None]:
    """Inside, matrix products in float32 may take TF32's 11 bits, on a GPU that has it; convolutions do so anyway."""
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
    """`run(x.to(dtype)).float()` for x (B, ...) in float32, and TF32 for what stays float32 there, forward and backward.

    Where `dtype` (or autocast's) is float16 and x asks for a gradient, each row's gradient is scaled by a power of two, so that
    the largest entry that enters the network is in [0.5, 1), and back when it has left it: what float16 would flush to zero
    survives, and nothing is rounded otherwise. Noise is outside: rotations and losses compute in plain float32.
    """
    device = x.device
    x = x.view_as(x)  # what is registered below is of this use of it alone
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
        # Apple's GPUs cannot take a number apart.
        apart = torch.frexp(largest.cpu() if device.type == "mps" else largest).exponent.to(device)
        exponent = torch.where(largest.isfinite(), apart, 0).clamp(*EXPONENTS)
        exponents.append(exponent.view(-1, *[1] * (gradient.ndim - 1)))
        return torch.ldexp(gradient, -exponents[-1])

    def leave(gradient: Tensor) -> Tensor:
        fast.close()
        return torch.ldexp(gradient, exponents.pop()) if scaled else gradient

    hooks: Any = (output, x)
    for tensor, hook in zip(hooks, (enter, leave), strict=True):
        tensor.register_hook(hook)
    return output
