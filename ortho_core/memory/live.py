"""Bytes of tensors alive at once, counted while the real code runs on tensors that hold no numbers.

PyTorch's fake tensors have shapes, types and storages of a size, and no content: a model of any size runs on any machine, in
seconds, and leaves the same tensors alive as on a GPU.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

#: PyTorch's allocator rounds every size up to a multiple of this.
ROUNDED_TO = 512
#: What autocast computes in float32 on a GPU, and not on a CPU, of what the networks call.
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
        """Through what was counted of two numbers of rows."""
        each = (counted[1] - counted[0]) // (rows[1] - rows[0])
        return Linear(max(0, counted[0] - each * rows[0]), each)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of tensors that are made inside, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def _count(self, value: Any) -> None:
        for tensor in tree_leaves(value):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._seen:
                size = -(-storage.nbytes() // ROUNDED_TO) * ROUNDED_TO
                self._seen.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._count(made)
        return made

    def peak_of(self, work: Callable[[], object]) -> int:
        """The most bytes alive at once while `work` runs, on top of those alive before it."""
        gc.collect()
        before = self.peak = self.live
        work()
        return self.peak - before


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


@contextmanager
def without_numbers() -> Iterator[LiveBytes]:
    """Inside, tensors hold no numbers, and their bytes are counted.

    Autocast is as on a GPU, where it leaves larger tensors behind. For one thread of a process at a time.
    """
    usual = {name: getattr(F, name) for name in _FLOAT32_ON_A_GPU}
    for name, function in usual.items():
        setattr(F, name, _in_float32(function))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
            yield live
    finally:
        for name, function in usual.items():
            setattr(F, name, function)
