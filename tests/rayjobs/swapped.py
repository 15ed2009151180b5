"""Files that are swapped for others while a verb is under way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

#: The weights of a pipeline's network, in its folder.
UNET = Path("unet", "diffusion_pytorch_model.safetensors")


def swap_weights(file: Path) -> None:
    """Put weights of the same names and shapes in the place of a file's."""
    tensors = load_file(file)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, aside := file.with_name("aside"), {"format": "pt"})
    os.replace(aside, file)


def swap_before(monkeypatch: pytest.MonkeyPatch, function: str, swap: Callable[[], None]) -> None:
    """Swap whenever the function, `module.name`, is called: what is planned is planned by then, and nothing is loaded."""
    module, _, name = function.rpartition(".")
    original = getattr(__import__(module, fromlist=[name]), name)

    def called(*arguments: Any, **options: Any) -> Any:
        swap()
        return original(*arguments, **options)

    monkeypatch.setattr(function, called)
