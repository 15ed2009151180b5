"""LoRAs added to the weights of a pipeline's networks: W + Σ w · α/r · B A, in float32, rounded once to the network's dtype.

diffusers reads the files, whatever their format. It reads a UNet's adapters into a skeleton of the UNet without weights, so
that no second copy of the weights is ever made: each is added to where it belongs, layer by layer.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import convert_unet_state_dict_to_peft
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ortho_core.errors import UserError
from ortho_core.generators.lora_files import LoraFile

ADAPTER = "added"
#: The weight of a layer as it is on disk, by the layer's name; None where it is only in the network.
Originals = Callable[[str], Tensor | None]


def merge_loras(
    pipeline: Any, networks: Mapping[str, nn.Module], files: Sequence[LoraFile], originals: Originals
) -> None:
    """Add `files`, in their order, to the weights of `networks`, which are named as a pipeline names its parts.

    `pipeline` is the pipeline's class. `originals` has the UNet's weights before they were rounded to its dtype; text
    encoders, if any file adapts them, are in float32. Raises UserError, naming the file, for one of another model.
    """
    read = [_Adapters.read(file, pipeline, networks) for file in files]
    names = dict.fromkeys(name for each in read for name in each.unet)
    for name in names:
        layer = networks["unet"].get_submodule(name)
        weight: Any = layer.weight
        stored = originals(name)
        total = (weight.data if stored is None else stored).float()
        for each in read:
            if name in each.unet:
                total = total + each.product(name)
        weight.data.copy_(total)


class _Adapters:
    """The adapters in one file: of the UNet by layer, to be added; those of text encoders have been added when it is read."""

    def __init__(self, unet: Mapping[str, Any], weight: float) -> None:
        self.unet, self.weight = unet, weight

    def product(self, name: str) -> Tensor:
        """What is added to the weight of a layer, float32."""
        return _product(self.unet[name], self.weight)

    @staticmethod
    def read(file: LoraFile, pipeline: Any, networks: Mapping[str, nn.Module]) -> "_Adapters":
        unet: Any = networks["unet"]
        try:
            with _quiet():
                state, alphas, metadata = pipeline.lora_state_dict(
                    str(file.path),
                    unet_config=unet.config,
                    local_files_only=True,
                    use_safetensors=True,
                    return_lora_metadata=True,
                )
                if not any(key.startswith(("unet.", "text_encoder")) for key in state):  # as before diffusers 0.17
                    state = {f"unet.{key}": value for key, value in state.items()}
                found: dict[str, dict[str, Any]] = {}
                for part, network in networks.items():
                    own = {key: value for key, value in state.items() if key.startswith(f"{part}.")}
                    if not own:
                        continue
                    if part == "unet":
                        found[part] = _unet_layers(pipeline, unet, own, alphas, metadata)
                    else:
                        own, alphas = (_flattened(each, part, network) for each in (own, alphas))
                        pipeline.load_lora_into_text_encoder(
                            own, alphas, network, part, adapter_name=ADAPTER, low_cpu_mem_usage=True, metadata=metadata
                        )
                        found[part] = _layers_of(network)
        except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"--lora {file.path} does not fit this model: {str(error).splitlines()[0][:200]}"
            ) from error
        count = sum(map(len, found.values()))
        if count != file.layers:
            raise UserError(
                f"--lora {file.path} does not fit this model: it adapts {file.layers} layers, of which the model has {count}"
            )
        for part, layers in found.items():
            if part != "unet":
                _add_in_place(networks[part], layers, file.weight)
        return _Adapters(found.get("unet", {}), file.weight)


def _product(layer: Any, weight: float) -> Tensor:
    for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
        factor.weight.data = factor.weight.data.float()
    product: Tensor = layer.get_delta_weight(ADAPTER)
    return product * weight


def _unet_layers(pipeline: Any, unet: Any, state: dict[str, Tensor], alphas: Any, metadata: Any) -> dict[str, Any]:
    """The layers of a skeleton of the UNet that the file adapts, with the file's factors in them."""
    with torch.device("meta"):
        skeleton = type(unet).from_config(unet.config)
    pipeline.load_lora_into_unet(state, alphas, skeleton, ADAPTER, low_cpu_mem_usage=True, metadata=metadata)
    named = {key.removeprefix("unet."): value for key, value in state.items()}
    if not any("lora_A" in key for key in named):
        named = convert_unet_state_dict_to_peft(named)
    layers = {}
    for name, layer in _layers_of(skeleton).items():
        factors = [named.get(f"{name}.lora_{which}.weight") for which in "AB"]
        if all(factor is not None for factor in factors):
            for held, factor in zip((layer.lora_A, layer.lora_B), factors, strict=True):
                held[ADAPTER].weight = nn.Parameter(factor, requires_grad=False)
            layers[name] = layer
    return layers


def _layers_of(network: nn.Module) -> dict[str, Any]:
    """The layers with adapters by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def _add_in_place(network: nn.Module, layers: Mapping[str, Any], weight: float) -> None:
    """Add the adapters of a text encoder, and leave no layer of PEFT's behind."""
    for name, layer in layers.items():
        plain = layer.get_base_layer()
        plain.weight.data += _product(layer, weight)
        network.set_submodule(name, plain)
    vars(network).pop("peft_config", None)
    network._hf_peft_config_loaded = False  # type: ignore[assignment]  # as before: transformers' own note of adapters
    network.requires_grad_(False)


def _flattened(state: Mapping[str, Any] | None, part: str, network: nn.Module) -> dict[str, Any] | None:
    """Names without the level that transformers' text encoders had before version 5.6, where this one has none."""
    if state is None or hasattr(network, "text_model"):
        return None if state is None else dict(state)
    return {key.replace(f"{part}.text_model.", f"{part}.", 1): value for key, value in state.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries say of files that do not fit is said by errors here; and the random state stays as it is."""
    loggers = (diffusers_logging, transformers_logging)
    before = [each.get_verbosity() for each in loggers]
    for each in loggers:
        each.set_verbosity(50)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, verbosity in zip(loggers, before, strict=True):
            each.set_verbosity(verbosity)
