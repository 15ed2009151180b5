"""Write tensors in the safetensors format, and read single rows of them from any folder.

Equal tensors and metadata give a bit-identical file each time. The format: eight bytes with the header's length; the header, JSON
with each tensor's type, shape and offsets; the tensors. The safetensors library is not used: it writes several metadata entries
in random order and files that only their owner may read, and it reads local files only.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ortho_core.storage.aside import aside
from ortho_core.storage.store import Store
from ortho_core.text.parsing import json_object

#: Names of the dtypes in the format.
TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
}
DTYPE_OF = {name: dtype for dtype, name in TYPES.items()}
#: The largest header that is read.
MOST_HEADER_BYTES = 64 << 20
#: Bytes of the first read of a header; most headers need no second one.
FIRST_READ = 16 << 10


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, from any device, one after the other; the file appears whole or not at all. Raises OSError."""
    fresh = aside(file)
    try:
        with fresh.open("wb") as stream:
            stream.writelines(_pieces(tensors, metadata))
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of the file that `write_tensors` writes."""
    return b"".join(_pieces(tensors, metadata))


def _pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    # Wide types first: the format needs each tensor to begin at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield raw_bytes(tensors[name])


def raw_bytes(tensor: Tensor) -> bytes:
    """The numbers of a tensor as the format stores them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class StackedTensor:
    """A tensor (N, ...) of a file, of which rows are read."""

    dtype: torch.dtype
    #: The shape of a row.
    shape: tuple[int, ...]
    rows: int
    #: Place of the first row in the file.
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, folder: Store, name: str, row: int) -> bytes:
        """The bytes of one row, read from the file `name`. Raises OSError."""
        return folder.read(name, self.offset + row * self.row_bytes, self.row_bytes)

    def tensor(self, content: bytes) -> Tensor:
        """A row from its bytes."""
        return torch.frombuffer(bytearray(content), dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """The header of a file of stacked tensors."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, StackedTensor]
    #: Bytes of the whole file.
    size: int

    @staticmethod
    def read(folder: Store, name: str) -> "TensorFile":
        """Read the header of a file. Raises OSError, and ValueError if it is not one of whole stacked tensors."""
        start = folder.read(name, 0, FIRST_READ)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > MOST_HEADER_BYTES:
            raise ValueError("it has no header of the safetensors format")
        text = start[8 : 8 + length]
        text += folder.read(name, 8 + len(text), length - len(text)) if len(text) < length else b""
        content, begin = json_object(text, "its header"), 8 + length
        try:
            metadata = {str(key): str(value) for key, value in content.pop("__metadata__", {}).items()}
            tensors = {key: _stacked(about, begin) for key, about in content.items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("its header has unknown entries") from error
        ends = (each.offset + each.rows * each.row_bytes for each in tensors.values())
        return TensorFile(metadata, tensors, max(ends, default=begin))


def _stacked(about: Mapping[str, Any], begin: int) -> StackedTensor:
    """A tensor from its entry in the header. Raises ValueError, KeyError or TypeError."""
    shape, (first, last) = about["shape"], about["data_offsets"]
    if not shape or not all(isinstance(number, int) and number >= 0 for number in (*shape, first, last)):
        raise ValueError("its header has a tensor without rows")
    rows, *rest = shape
    tensor = StackedTensor(DTYPE_OF[str(about["dtype"])], tuple(rest), rows, begin + first)
    if last - first != tensor.rows * tensor.row_bytes:
        raise ValueError("its header has a tensor whose size does not fit its shape")
    return tensor


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in dtype `dtype`; unchanged if a value overflows there, as values above 65,504 do in float16."""
    rounded = tensor.detach().to(dtype)
    return rounded if bool(torch.isfinite(rounded).all()) else tensor.detach()
