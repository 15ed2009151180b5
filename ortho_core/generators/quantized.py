"""Pack a frozen network: the weights of its linear layers are stored in int8 or nf4; the dtype of the computation is unchanged.

A layer unpacks its weights to the dtype of its input in the forward pass, and again in the backward pass. It keeps neither the
unpacked weights nor its inputs in between, so a search or an adapter needs no more activation memory. Layers of libraries do not
do this: bitsandbytes' LLM.int8 also rounds the inputs and keeps them for the backward pass, and torchao's keep the unpacked
weights.

Axes: o × i a layer's weight.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ortho_core.errors import UserError

#: Number of nf4 weights that share a scale, as in QLoRA (Dettmers et al. 2023).
NF4_BLOCK = 64


class _Product(torch.autograd.Function):
    """x Wᵀ + b with W from `layer.taken_back`; it has a gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: "QuantizedLinear") -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.taken_back(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.taken_back(gradient.dtype), None, None


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weights are stored in fewer bits, with float32 scales."""

    scale: Tensor

    def __init__(self, layer: nn.Linear, weight: Tensor, scale: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(weight.device), requires_grad=False)
        self.train(layer.training)

    def taken_back(self, dtype: torch.dtype) -> Tensor:
        """The unpacked weight W (o, i) in `dtype`."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return cast(Tensor, _Product.apply(input, bias, self))


class Int8Linear(QuantizedLinear):
    """W = q · s with q in [-127, 127], int8, and s (o, 1)."""

    @staticmethod
    def of(layer: nn.Linear, device: torch.device) -> "Int8Linear":
        weight = layer.weight.detach().to(device).float()
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        return Int8Linear(layer, (weight / scale).round_().to(torch.int8), scale)

    def taken_back(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype) * self.scale.to(dtype)


class NF4Linear(QuantizedLinear):
    """W in bitsandbytes' nf4: 4-bit quantiles of a normal distribution, times one scale per `NF4_BLOCK` weights."""

    @staticmethod
    def of(layer: nn.Linear, device: torch.device) -> "NF4Linear":
        weight = layer.weight.detach().to(device).contiguous()
        packed, scale = torch.ops.bitsandbytes.quantize_4bit.default(weight, NF4_BLOCK, "nf4", torch.uint8)
        return NF4Linear(layer, packed, scale.float())

    def taken_back(self, dtype: torch.dtype) -> Tensor:
        # Unpacked as one row: on a CPU, bitsandbytes wrongly assumes that each row is a whole number of blocks.
        count, unpack = self.out_features * self.in_features, torch.ops.bitsandbytes.dequantize_4bit.default
        row: Tensor = unpack(self.weight, self.scale, NF4_BLOCK, "nf4", [count], dtype)
        return row.reshape(self.out_features, self.in_features)


#: Functions that pack a layer onto a device, by kind.
PACKED = {"int8": Int8Linear.of, "nf4": NF4Linear.of}


def quantize_layers(network: nn.Module, kind: str, device: torch.device, not_quantized: tuple[str, ...] = ()) -> None:
    """Pack the network's linear layers as `kind` onto `device`, except those in modules named in `not_quantized`.

    `none` changes nothing. Raises UserError for `nf4` if bitsandbytes is not installed.
    """
    if kind == "none":
        return
    if kind == "nf4":
        _load_bitsandbytes()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and not any(part in not_quantized for part in name.split(".")):
            network.set_submodule(name, PACKED[kind](layer, device))


def is_quantized(network: nn.Module) -> bool:
    """Whether any of the network's layers was packed by `quantize_layers`."""
    return any(isinstance(layer, QuantizedLinear) for layer in network.modules())


def _load_bitsandbytes() -> None:
    """Import bitsandbytes, which registers the operators `torch.ops.bitsandbytes`."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--quantize nf4 needs bitsandbytes: pip install 'ortho-em[nf4]'; --quantize int8 needs no extra package"
        ) from error
