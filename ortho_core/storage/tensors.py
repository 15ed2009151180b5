"""Write tensors in the safetensors format. Equal tensors and metadata give a bit-identical file each time.

The format: eight bytes with the header's length; the header, JSON with each tensor's type, shape and offsets; the tensors.
The safetensors library is not used: it writes several metadata entries in random order, and files that only their owner may read.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ortho_core.storage.aside import aside

#: Names of the dtypes in the format.
TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
}


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, from any device, one after the other; the file appears whole or not at all. Raises OSError."""
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
    fresh = aside(file)
    try:
        with fresh.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                stream.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in dtype `dtype`; unchanged if a value overflows there, as values above 65,504 do in float16."""
    rounded = tensor.detach().to(dtype)
    return rounded if bool(torch.isfinite(rounded).all()) else tensor.detach()
