"""Make `examples/mnist`: `python -m models.recipes.excerpt --mnist DIR --out examples/mnist`.

The first images of both splits of MNIST with their labels, in gzipped files of the original format: enough to train on,
and small enough for git.
"""

import argparse
import gzip
import struct
from pathlib import Path

from torch import Tensor

from models.recipes.digits import read_idx

TRAIN, TEST = 6000, 1000


def idx(values: Tensor) -> bytes:
    """A uint8 tensor as an IDX file."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.numpy().tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", TRAIN), ("t10k", TEST)):
        for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
            content = idx(read_idx(args.mnist / name)[:count])
            # Without a time in the header, equal images give an equal file.
            (args.out / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))


if __name__ == "__main__":
    main()
