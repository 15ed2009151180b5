"""Refuses files that should not be committed: large ones, and ones with absolute paths of a personal machine.

`python .ci/check_files.py [FILE ...]`; without names it checks all files that git tracks.
"""

import re
import subprocess
import sys
from pathlib import Path

LIMIT = 1 << 20
#: Weights of the models in the repository.
LARGE = {
    "models/tiny-turbo/unet/diffusion_pytorch_model.safetensors",
    "models/tiny-turbo/vae/diffusion_pytorch_model.safetensors",
    "ortho_core/evaluation/tiny-clip/model.safetensors",
}
#: Home folders, except those of `ray` in Ray's images and of `me` in examples. Binary files are searched too.
PRIVATE = re.compile(rb"/(?:(?:home|Users)/(?!(?:me|ray)\b)[\w.-]+|root/)")


def faults(name: str) -> list[str]:
    content = Path(name).read_bytes()
    found = []
    if len(content) > LIMIT and name not in LARGE:
        found.append(f"{name}: {len(content)} bytes; accepted: {LIMIT}")
    if path := PRIVATE.search(content):
        line = content.count(b"\n", 0, path.start()) + 1
        found.append(f"{name}:{line}: {path[0].decode()} is a path of one machine")
    return found


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if Path(name).is_file()]


if __name__ == "__main__":
    names = sys.argv[1:] or tracked()
    sys.exit("\n".join(fault for name in names for fault in faults(name)) or 0)
