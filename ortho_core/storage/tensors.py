"""Files of tensors in the safetensors format that are the same to the last bit whenever they are written.

The format is eight bytes, the header's length; the header, JSON of each tensor's type, shape and place; the tensors. The
library's own writer shuffles several entries of metadata, and makes files that only their owner may read.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ortho_core.storage.aside import aside

#: The format's names of types.
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
    # Wide types first, so that each tensor begins at a multiple of its type's size, as the format has it.
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
    """`tensor` in another type; as it is where that type cannot hold it, as float16 cannot hold more than 65,504."""
    rounded = tensor.detach().to(dtype)
    return rounded if bool(torch.isfinite(rounded).all()) else tensor.detach()
