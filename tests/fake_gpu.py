"""A GPU that is not there: tensors of its device have shapes and no content, and what they would cost is counted.

Tensors of the pretended device are PyTorch's fake tensors, which raise where devices are mixed. Those of the host are real: what
the host reads of the device is zeros. PyTorch's own code sees `meta` in the device's place, so that no driver is asked for
anything; everything in Python sees the device.
"""

import collections
import traceback
import weakref
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

GiB = 2**30
META = torch.device("meta")
aten = torch.ops.aten
#: What an allocator gives out is a multiple of this.
BLOCK = 512
#: The host waits for a number of the device, or for a count that decides a shape.
READS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


class _Fake(FakeTensorMode):
    # Else PyTorch puts a stand-in for the driver that says there is a device, which its backward pass then asks.
    avoid_device_init = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return seen_by_torch(args[0])
        return super().__torch_dispatch__(func, types, args, kwargs or {})


def seen_by_torch(tensor: Tensor) -> torch.device:
    """The device of a tensor for PyTorch's own code."""
    device = tensor.device  # of a fake tensor, answered in Python
    return META if isinstance(tensor, FakeTensor) and device.type != "cpu" else device


class _Calls(TorchFunctionMode):
    """What PyTorch decides by asking the driver."""

    def __init__(self, gpu: "FakeGpu") -> None:
        super().__init__()
        self.gpu = gpu
        self.cast: dict[int, Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return self.gpu.pinned(args[0])
        if torch.is_autocast_enabled(self.gpu.device.type) and func in AUTOCAST:
            kind = AUTOCAST[func] or torch.get_autocast_dtype(self.gpu.device.type)
            args, kwargs = tree_map_only(FakeTensor, lambda t: self._as(t, kind), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _as(self, tensor: Tensor, kind: torch.dtype) -> Tensor:
        """As autocast gives it to an operation: of a weight that trains, one copy serves all that is in its context."""
        if not tensor.is_floating_point() or tensor.dtype is kind:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(kind)
        if id(tensor) not in self.cast:
            self.cast[id(tensor)] = tensor.to(kind)
        return self.cast[id(tensor)]


#: What autocast computes in another type, of what these networks do; none: in the one that was asked for.
AUTOCAST: dict[object, torch.dtype | None] = {
    F.linear: None,
    F.conv2d: None,
    F.scaled_dot_product_attention: None,
    F.layer_norm: torch.float32,
    F.group_norm: torch.float32,
}


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """Attention that keeps no matrix of all with all, as that of a GPU."""
    log_sums = any(t.requires_grad for t in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, log_sums, dropout_p, is_causal, scale=scale
    )[0]


class Event:
    """A moment of the device's work; when the host waits for one, that was recorded a step ago."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


#: What else asks the driver: for events, for bfloat16 in autocast, whether an optimiser's step is captured.
PATCHED = {
    torch.cuda: {"Event": Event, "is_available": lambda: True, "is_bf16_supported": lambda: True},
    torch.accelerator: {"current_accelerator": lambda check_available=False: None},
}


class FakeGpu(TorchDispatchMode):
    """Counts what happens on the device while it is entered: `waits`, `live` and `peak` bytes, `ops`, `flops`."""

    def __init__(self, device: str = "cuda:0") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.fake = _Fake(allow_non_fake_inputs=True)
        #: By kind and line: what makes the host wait for the device.
        self.waits: collections.Counter[str] = collections.Counter()
        #: Copies that go on while the host does, and waits for an event that was recorded before.
        self.copies: collections.Counter[str] = collections.Counter()
        self.ops: collections.Counter[torch._ops.OpOverload] = collections.Counter()
        self.dtypes: set[torch.dtype] = set()
        self.live = self.peak = self.flops = 0
        self._storages: set[int] = set()
        self._pinned: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __enter__(self) -> "FakeGpu":
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # a tensor of numbers is made in host memory, and copied: so it is seen
        self._calls = _Calls(self)
        self._calls.__enter__()
        self._patched = ExitStack()
        self._patched.enter_context(mock.patch.object(torch, "clear_autocast_cache", self._calls.cast.clear))
        for module, names in PATCHED.items():
            self._patched.enter_context(mock.patch.multiple(module, **names))
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)
        self._patched.close()
        self._calls.__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifts)

    def reset(self) -> None:
        """Count anew from what is live now."""
        self.waits.clear()
        self.copies.clear()
        self.ops.clear()
        self.peak, self.flops = self.live, 0

    def there(self, value: object) -> bool:
        return isinstance(value, Tensor) and isinstance(value, FakeTensor) and value.device.type == self.device.type

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return seen_by_torch(args[0])
        name, kwargs = func._schema.name, dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type in ("meta", self.device.type):
            kwargs["device"] = self.device
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if kwargs.get("device") != self.device and not any(map(self.there, tensors)):
            return self._on_the_host(func, args, kwargs)
        self.ops[func] += 1
        result = self._on_the_device(func, name, args, kwargs)
        if (counted := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += counted(*args, **kwargs, out_val=result)
        for t in filter(self.there, tree_leaves(result)):
            self._count(t)
        return result

    def _on_the_host(self, func, args, kwargs):
        pinned = kwargs.pop("pin_memory", None)
        with _disable_current_modes():
            result = func(*args, **kwargs)
            if pinned:
                result.zero_()
                self._pinned.add(result.untyped_storage())
        return result

    def _on_the_device(self, func, name, args, kwargs):
        if name in READS:
            return self._read(name, args)
        if name in ("aten::_to_copy", "aten::copy_"):
            return self._copy(func, name, args, kwargs)
        if name in INDEXED:
            self._index(name, args)
        return func(*args, **kwargs)

    def _read(self, name, args):
        self._wait(f"{name.removeprefix('aten::')} of a tensor of the device")
        if name == "aten::_local_scalar_dense":
            with _disable_current_modes():
                return torch.zeros((), dtype=args[0].dtype).item()
        if name in ("aten::is_nonzero", "aten::equal"):
            return False
        raise AssertionError(
            f"{name}: the shape of its result depends on what a tensor of the device holds, at {place()}"
        )

    def _copy(self, func, name, args, kwargs):
        if name == "aten::copy_":
            to, of = args[0], args[1]
            gently = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
            device = to.device
        else:
            of, to = args[0], None
            gently, device = kwargs.get("non_blocking", False), kwargs.get("device") or of.device
        if device.type == of.device.type:
            if to is None and self._is_no_change(of, kwargs):
                return aten.alias.default(of)
            return func(*args, **kwargs)
        host = of if self.there(to) or (to is None and device == self.device) else to
        asleep = host is None or host.untyped_storage() not in self._pinned
        if asleep or not gently:
            self._wait(
                f"{of.device.type} to {device.type}, {'ordinary memory' if asleep else 'blocking'}, {tuple(of.shape)}"
            )
        else:
            self.copies[f"{of.device.type} to {device.type} {tuple(of.shape)} at {place()}"] += 1
        if to is not None:
            return to
        dtype = kwargs.get("dtype") or of.dtype
        if device == self.device:
            return torch.empty_strided(of.shape, of.stride(), dtype=dtype, device=self.device)
        with _disable_current_modes():
            return torch.zeros(of.shape, dtype=dtype)

    def _is_no_change(self, of, kwargs) -> bool:
        """PyTorch's own code takes the device for another than the one that is asked for, and would copy."""
        layout = kwargs.get("memory_format")
        return (
            kwargs.get("device") is not None
            and kwargs.get("dtype") in (None, of.dtype)
            and (layout in (None, torch.preserve_format) or of.is_contiguous(memory_format=layout))
        )

    def _index(self, name, args):
        for t in tree_leaves(args[1]):
            if isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8):
                self._wait("an index by a mask")
            if isinstance(t, Tensor) and t.device.type == "cpu" and self.there(args[0]):
                self._wait("an index in host memory")

    def _wait(self, what: str) -> None:
        self.waits[f"{what}, at {place()}"] += 1

    def _count(self, tensor: FakeTensor) -> None:
        self.dtypes.add(tensor.dtype)
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def pinned(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self._pinned.add(copy.untyped_storage())
        return copy


def place() -> str:
    """The line of the packages that called last."""
    for frame in reversed(traceback.extract_stack()):
        for package in ("/ortho_core/", "/rayjobs/"):
            if package in frame.filename:
                return f"{package[1:]}{frame.filename.split(package)[-1]}:{frame.lineno}"
    return "?"
