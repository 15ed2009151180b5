"""Load a pipeline's parts from a diffusers folder or a single-file checkpoint, and put them together.

Each part is loaded directly in the dtype it computes in, from the variant of its files that fits this dtype best.
"""

import importlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    create_diffusers_clip_model_from_ldm,
    load_single_file_checkpoint,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ortho_core.errors import UserError
from ortho_core.generators.checkpoint_file import PREFIXES, clip_vocabulary
from ortho_core.generators.lora_files import LoraFile
from ortho_core.generators.lora_merging import merge_loras
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.part_files import check_safetensors, preferred, read_json
from ortho_core.generators.pipeline_files import FLOAT32, INDEX


def pipeline_class(kind: str) -> Any:
    """The class of diffusers with this name."""
    return getattr(diffusers, kind)


def load_pipeline(folder: ModelFolder, dtype: torch.dtype, loras: tuple[LoraFile, ...]) -> diffusers.DiffusionPipeline:
    """The pipeline on the CPU, frozen: VAE in float32, the rest in `dtype`, with `loras` added to its weights.

    Raises UserError, naming the broken file or model.
    """
    base = folder.base
    kind, configs, adapter = base.kind, base.configs, base.adapter
    assert configs is not None
    source: Source = CheckpointSource(base) if base.checkpoint else FolderSource(base)
    exact = folder.exact
    try:
        networks = {name: source.load(name, torch.float32 if name in exact else dtype) for name in base.networks}
        if loras:
            adapted = {name: network for name, network in networks.items() if name not in FLOAT32}
            merge_loras(pipeline_class(kind), adapter.network, adapted, loras, source.original)
        for name, network in networks.items():
            if name in exact and name not in FLOAT32:
                network.to(dtype)
            network.requires_grad_(False).eval()
        built_in = _tokenizers(configs, base) if base.built_in else {}
        pipeline: diffusers.DiffusionPipeline = pipeline_class(kind).from_pretrained(
            configs, local_files_only=True, **networks, **built_in, **adapter.left_out
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, ImportError, SafetensorError) as error:
        check_safetensors(base.place / name for name in base.all_files if name.endswith(".safetensors"))
        source_kind = "checkpoint" if base.checkpoint else "model folder"
        raise UserError(f"{source_kind} {base.path} does not load as {kind}: {first_line(error)}") from error
    return pipeline


class Source(Protocol):
    """The source of a pipeline's weights."""

    def load(self, name: str, dtype: torch.dtype) -> nn.Module:
        """A part of the pipeline in `dtype`."""
        ...

    def original(self, layer: str) -> Tensor | None:
        """The weight of a layer of the network, by the layer's name, in the dtype on disk; None if it is not stored."""
        ...


class FolderSource:
    """One folder per part, as diffusers and transformers save them."""

    def __init__(self, base: ModelFolder) -> None:
        self.base = base
        #: The variant of the weights that each part was loaded from.
        self.variants: dict[str, str] = {}

    def load(self, name: str, dtype: torch.dtype) -> nn.Module:
        variant = self.variants[name] = preferred(self.base.weights[name], str(dtype).removeprefix("torch."))
        network: nn.Module = _class_of(self.base, name).from_pretrained(
            self.base.path / name, variant=variant or None, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        return network

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each tensor of the network, by the tensor's name."""
        files, part = {}, self.base.adapter.network
        for name in self.base.weights[part][self.variants[part]]:
            with safe_open(self.base.path / name, "pt") as stored:
                files.update(dict.fromkeys(stored.keys(), self.base.path / name))
        return files

    def original(self, layer: str) -> Tensor | None:
        file = self._files.get(f"{layer}.weight")
        if file is None:
            return None
        with safe_open(file, "pt") as stored:
            tensor: Tensor = stored.get_tensor(f"{layer}.weight")
        return tensor


class CheckpointSource:
    """All parts in one file, with the names of the original repositories; diffusers converts them."""

    def __init__(self, base: ModelFolder) -> None:
        self.base = base
        # Memory-mapped: a part's tensors are read when the part is loaded.
        self.tensors: Mapping[str, Tensor] = load_single_file_checkpoint(str(base.path), local_files_only=True)

    def load(self, name: str, dtype: torch.dtype) -> nn.Module:
        kind, tensors, configs = _class_of(self.base, name), self._part(name), str(self.base.configs)
        if hasattr(kind, "from_single_file"):
            network: nn.Module = kind.from_single_file(
                tensors, config=configs, subfolder=name, torch_dtype=dtype, local_files_only=True
            )
        else:
            network = create_diffusers_clip_model_from_ldm(
                kind, tensors, subfolder=name, config=configs, torch_dtype=dtype, local_files_only=True
            )
        for parameter, value in network.named_parameters():
            if value.is_meta:
                raise ValueError(f"{name} has no {parameter}")
        return network

    def _part(self, name: str) -> dict[str, Tensor]:
        prefix = PREFIXES[self.base.kind][name]
        return {key: value for key, value in self.tensors.items() if key.startswith(prefix)}

    @cached_property
    def _unet(self) -> Mapping[str, Tensor]:
        assert self.base.configs is not None
        config = read_json(self.base.configs / "unet" / "config.json")
        converted: Mapping[str, Tensor] = convert_ldm_unet_checkpoint(self._part("unet"), config)
        return converted

    def original(self, layer: str) -> Tensor | None:
        return self._unet.get(f"{layer}.weight")


def first_line(error: Exception) -> str:
    """The first line of an error's text that has one; the message of a missing package begins with an empty line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _class_of(base: ModelFolder, name: str) -> Any:
    library, kind = base.parts[name]
    network_class = getattr(importlib.import_module(library), kind, None)
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise ValueError(f"{library} has no network class {kind}, which {INDEX} names for {name}")
    return network_class


def _tokenizers(configs: Path, base: ModelFolder) -> dict[str, Any]:
    """Tokenizers with the built-in vocabulary."""
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    settings = {
        name: read_json(configs / name / "tokenizer_config.json") for name in base.parts if name.startswith("tokenizer")
    }
    return {
        name: CLIPTokenizer(
            vocab=vocabulary, merges=merges, **{k: v for k, v in each.items() if k != "tokenizer_class"}
        )
        for name, each in settings.items()
    }
