"""The bytes of tensors alive at the same time, counted while the real code runs on fake tensors.

PyTorch's fake tensors have a shape, a dtype and the size of a storage, but no numbers. So a model of any size runs on any
machine within seconds, and keeps the same tensors alive as on a GPU.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ortho_core.device import Constant

#: PyTorch's allocator rounds every size up to a multiple of this.
ROUNDED_TO = 512
#: Functions of the networks that autocast computes in float32 on a GPU, but not on a CPU.
_FLOAT32_ON_A_GPU = ("layer_norm", "group_norm")


@dataclass(frozen=True)
class Linear:
    """Bytes that grow with the rows: `base + each·rows`."""

    base: int
    each: int

    def __call__(self, rows: int) -> int:
        return self.base + self.each * rows if rows else 0

    @staticmethod
    def through(rows: tuple[int, int], counted: tuple[int, int]) -> "Linear":
        """The line through the counts for two numbers of rows."""
        each = (counted[1] - counted[0]) // (rows[1] - rows[0])
        return Linear(max(0, counted[0] - each * rows[0]), each)


NOTHING = Linear(0, 0)


def rounded(size: int) -> int:
    """The bytes that the allocator reserves for a tensor of `size` bytes."""
    return -(-size // ROUNDED_TO) * ROUNDED_TO


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensor storages that are created inside this context, while they are alive."""

    def __init__(self, fakes: FakeTensorMode | None = None) -> None:
        """`fakes` is the surrounding mode of fake tensors; a number read from a fake tensor is 1."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._fakes = fakes
        self.live = self.peak = 0
        self._seen: set[int] = set()
        #: Bytes alive after every operation, while a trace is recorded.
        self._trace: list[int] | None = None

    def _count(self, value: Any, made: bool) -> None:
        for tensor in tree_leaves(value):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._seen:
                size = rounded(storage.nbytes()) if made else 0
                self._seen.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Inputs from outside existed before: a view of one, such as a weight, needs no memory.
        if any(isinstance(leaf, torch.Tensor) and not self._was_made(leaf) for leaf in tree_leaves((args, kwargs))):
            if self._fakes is not None:
                args, kwargs = tree_map(self._without_numbers, (args, kwargs or {}))
            self._count((args, kwargs), made=False)
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        made = func(*args, **(kwargs or {}))
        self._count(made, made=True)
        if self._trace is not None:
            self._trace.append(self.live)
        return made

    def _was_made(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was created inside; in fake mode, whether it is a fake tensor."""
        if self._fakes is not None:
            return isinstance(tensor, FakeTensor)
        return tensor.untyped_storage()._cdata in self._seen

    def _without_numbers(self, value: Any) -> Any:
        """The fake tensor for a real one from outside, such as a reward's weight: else its views would count as new tensors."""
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            assert self._fakes is not None
            return self._fakes.from_tensor(value)
        return value

    def peak_of(self, work: Callable[[], object]) -> int:
        """The largest number of bytes alive at once while `work` runs, without those alive before it."""
        gc.collect()
        before = self.peak = self.live
        work()
        return self.peak - before

    def trace_of(self, work: Callable[[], object]) -> list[int]:
        """Bytes alive after each operation of `work`, without those alive before it."""
        gc.collect()
        before, self._trace = self.live, []
        try:
            work()
            return [live - before for live in self._trace]
        finally:
            self._trace = None


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    def cast(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        args, kwargs = tree_map(_to_float32, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return cast


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _beside(constant: Constant, tensor: torch.Tensor) -> torch.Tensor:
    """Replaces `Constant.beside` without its cache: a cached fake tensor would break every later use."""
    return constant.host.to(tensor.device, tensor.dtype)


@contextmanager
def without_numbers(as_on_a_gpu: bool = True) -> Iterator[LiveBytes]:
    """A context of fake tensors in which bytes are counted.

    Autocast works as on a GPU, where it keeps larger tensors; with `as_on_a_gpu=False` as on a CPU, to compare with real
    tensors. Only one thread of a process may use it at a time.
    """
    usual = {name: getattr(F, name) for name in _FLOAT32_ON_A_GPU if as_on_a_gpu}
    for name, function in usual.items():
        setattr(F, name, _in_float32(function))
    try:
        with (
            patch.object(Constant, "beside", _beside),
            FakeTensorMode(allow_non_fake_inputs=True) as fakes,
            LiveBytes(fakes) as live,
        ):
            yield live
    finally:
        for name, function in usual.items():
            setattr(F, name, function)
