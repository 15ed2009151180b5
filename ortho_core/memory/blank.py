"""A model without weights, built from the configurations in its folder, to count memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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

#: The window of an encoder that has none; the pipeline limits the tokens.
UNLIMITED = 1 << 30


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
        # Not above: it imports diffusers' pipelines, which takes seconds.
        from ortho_core.memory.blank_pipeline import BlankPipeline

    autoencoder = _blank(folder, "vae", torch.float32)
    return BlankPipeline(folder, network, autoencoder, _text_parts(folder, dtype))


def blank_network(
    folder: ModelFolder, dtype: torch.dtype, gradient_checkpointing: bool = False, quantize: str = "none"
) -> nn.Module:
    """The network alone, frozen."""
    if folder.class_config is not None:
        with _default(dtype):
            return _frozen(ClassNetwork(folder.class_config))
    network = _blank(folder, folder.adapter.network, dtype)
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    quantize_layers(network, quantize, network.device, folder.adapter.not_quantized)
    return _frozen(network)


def _blank(folder: ModelFolder, part: str, dtype: torch.dtype) -> Any:
    """A network of diffusers by its configuration."""
    with quick_imports():
        import diffusers

    place = _configurations(folder)
    _, parts = read_index(place)
    with _default(dtype):
        return _frozen(getattr(diffusers, parts[part][1]).from_config(read_json(place / part / "config.json")))


def _text_parts(folder: ModelFolder, dtype: torch.dtype) -> dict[str, Any]:
    """The text encoders, and tokenizers that give zeros, by the names of the parts."""
    import transformers

    from ortho_core.memory.blank_pipeline import BlankTokenizer

    place = _configurations(folder)
    _, parts = read_index(place)
    found: dict[str, Any] = {}
    for name, (_, kind) in parts.items():
        if name.startswith("text_encoder"):
            config: Any = transformers.AutoConfig.from_pretrained(place / name, local_files_only=True)
            config.dtype = dtype  # else some encoders are created in the dtype of their file
            with _default(dtype):
                encoder = getattr(transformers, kind)(config)
            tokenizer = name.replace("text_encoder", "tokenizer")
            length = partial(_length, parts[tokenizer][1], place / tokenizer)
            blank = BlankTokenizer(_tokens(place / tokenizer, config), length)
            found |= {name: _frozen(encoder), tokenizer: blank}
    return found


def _length(kind: str, tokenizer: Path, text: str) -> int:
    """Number of tokens of a text. The vocabulary is loaded only for pipelines that ask: those that add a text to each prompt."""
    import transformers

    loaded: Any = getattr(transformers, kind).from_pretrained(tokenizer, local_files_only=True)
    return len(loaded.encode(text))


def _tokens(tokenizer: Path, encoder: Any) -> int:
    """The tokenizer's limit, or the encoder's number of positions if the limit is larger or missing."""
    window = int(getattr(encoder, "max_position_embeddings", UNLIMITED))  # T5 has no positions
    file = tokenizer / "tokenizer_config.json"
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
