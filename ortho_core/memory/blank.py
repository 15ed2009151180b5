"""A model without weights, built from the configurations in its folder, to count memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.imports import quick_imports
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.part_files import read_json
from ortho_core.generators.pipeline_files import read_index
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.generators.quantized import quantize_layers


def blank_generator(
    folder: ModelFolder, dtype: torch.dtype, gradient_checkpointing: bool = False, quantize: str = "none"
) -> OneStepGenerator:
    """The folder's model with network and text encoders in `dtype`, and the network quantized by `quantize`.

    Call it inside `without_numbers`.
    """
    network = blank_network(folder, dtype, gradient_checkpointing, quantize)
    if folder.class_config is not None:
        assert isinstance(network, ClassNetwork)
        return ClassGenerator(folder.class_config, network)
    with quick_imports():
        from diffusers import AutoencoderKL

        # Not above: it imports diffusers' pipelines, which takes seconds.
        from ortho_core.memory.blank_pipeline import BlankPipeline

    autoencoder = AutoencoderKL.from_config(read_json(_configurations(folder) / "vae" / "config.json"))
    return BlankPipeline(folder, network, _frozen(autoencoder), _text_encoders(folder, dtype))


def blank_network(
    folder: ModelFolder, dtype: torch.dtype, gradient_checkpointing: bool = False, quantize: str = "none"
) -> nn.Module:
    """The network alone, frozen."""
    if folder.class_config is not None:
        with _default(dtype):
            return _frozen(ClassNetwork(folder.class_config))
    with quick_imports():
        from diffusers import UNet2DConditionModel

    with _default(dtype):
        unet = UNet2DConditionModel.from_config(read_json(_configurations(folder) / "unet" / "config.json"))
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    quantize_layers(unet, quantize, unet.device)
    return _frozen(unet)


def _text_encoders(folder: ModelFolder, dtype: torch.dtype) -> list[tuple[nn.Module, int]]:
    """The text encoders, each with the number of tokens to which diffusers pads every prompt."""
    import transformers

    place = _configurations(folder)
    _, parts = read_index(place)
    found: list[tuple[nn.Module, int]] = []
    for name, (_, kind) in parts.items():
        if name.startswith("text_encoder"):
            config: Any = transformers.AutoConfig.from_pretrained(place / name, local_files_only=True)
            config.dtype = dtype  # else some encoders are created in the dtype of their file
            with _default(dtype):
                encoder = getattr(transformers, kind)(config)
            found.append((_frozen(encoder), _tokens(place / name.replace("text_encoder", "tokenizer"), config)))
    return found


def _tokens(tokenizer: Path, encoder: Any) -> int:
    """The tokenizer's limit, or the encoder's number of positions if the limit is larger or missing."""
    window, file = int(encoder.max_position_embeddings), tokenizer / "tokenizer_config.json"
    return min(window, int(read_json(file).get("model_max_length") or window)) if file.is_file() else window


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(math.prod(t.shape) * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _configurations(folder: ModelFolder) -> Path:
    return folder.base.configs or folder.base.path


def _frozen(module: Any) -> Any:
    return module.requires_grad_(False).eval()


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """A context in which new weights have this dtype: weights without numbers cannot be converted afterwards."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)
