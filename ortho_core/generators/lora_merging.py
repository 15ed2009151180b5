"""Add LoRAs to the weights of a pipeline's networks: W + Σ w · α/r · B A, in float32, rounded once to the network's dtype.

diffusers' converter reads the files in any format that it knows. The sums are made here, layer by layer, so that a network never
contains a second copy of the weights or an adapter.

Axes: r the rank, o × i the weight of a linear layer, o × i × k × k that of a convolution.
"""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn

from ortho_core.errors import UserError
from ortho_core.generators.lora_files import LoraFile

#: Maps the name of a layer of the network that trains to its weight on disk; None if only the network has it.
Originals = Callable[[str], Tensor | None]
#: Names of factors from diffusers' converter: PEFT's, and the older ones for attention projections and other layers.
FACTOR = re.compile(
    r"(?P<layer>.+?)(\.to_(?P<projection>q|k|v|out)_lora|\.lora_linear_layer|\.lora)?"
    r"[._](lora_)?(?P<which>A|B|down|up)(\.default)?\.weight"
)


@dataclass(frozen=True)
class Factors:
    """The addition of a file to one layer: `scale` · B A."""

    A: Tensor  #: (r, i) or (r, i, k, k)
    B: Tensor  #: (o, r) or (o, r, 1, 1)
    scale: float

    def product(self) -> Tensor:
        """The addition to the weight, float32, in the weight's shape."""
        A, B = self.A.float(), self.B.float()
        if A.dim() == 2:
            return B @ A * self.scale
        if A.shape[2:] == (1, 1):
            return (B.flatten(1) @ A.flatten(1))[:, :, None, None] * self.scale
        return F.conv2d(A.transpose(0, 1), B).transpose(0, 1) * self.scale


def merge_loras(
    pipeline: Any, main: str, networks: Mapping[str, nn.Module], files: Sequence[LoraFile], originals: Originals
) -> None:
    """Add `files`, in their order, to the weights of `networks`, whose keys are the pipeline's part names.

    `pipeline` is the pipeline's class, `main` the part that trains. `originals` gives its weights before rounding; text encoders
    must be in float32 if a file adapts them. Raises UserError, naming the file, if a file belongs to another model.
    """
    read = [(file, _read(file, pipeline, main, networks)) for file in files]
    for part, layer in dict.fromkeys(place for _, adapters in read for place in adapters):
        weight = _weight(networks[part], layer)
        assert weight is not None
        stored = originals(layer) if part == main else None
        total = (weight.data if stored is None else stored).float()
        for file, adapters in read:
            if (factors := adapters.get((part, layer))) is not None:
                total = total + factors.product() * file.weight
        weight.data.copy_(total)


def _read(file: LoraFile, pipeline: Any, main: str, networks: Mapping[str, Any]) -> dict[tuple[str, str], Factors]:
    """The additions of a file, by part and layer. Raises UserError unless all of them fit these networks."""
    try:
        with _quiet():
            state, alphas, metadata = _converted(file.path, pipeline, networks[main].config)
        if not any(key.startswith((f"{main}.", "text_encoder")) for key in state):  # the format before diffusers 0.17
            state = {f"{main}.{key}": value for key, value in state.items()}
        halves: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key, value in state.items():
            part, layer, which = _place(key, networks)
            halves.setdefault((part, layer), {})[which] = value
        stated = {_place(key.removesuffix(".alpha"), networks)[:2]: float(alpha) for key, alpha in alphas.items()}
        additions = {
            place: Factors(pair["A"], pair["B"], _scale(place, pair["A"].shape[0], stated, metadata))
            for place, pair in halves.items()
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{file.said} does not fit this model: {str(error).splitlines()[0][:200]}") from error
    fitting = sum(_fits(factors, networks.get(part), layer) for (part, layer), factors in additions.items())
    if fitting < file.layers:
        raise UserError(
            f"{file.said} does not fit this model, which has {fitting} of the {file.layers} layers it adapts"
        )
    return additions


def _converted(file: Path, pipeline: Any, network: Any) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Tensors, alphas and metadata of a file in diffusers' names. Its loaders for kinds of pipelines differ in their options."""
    asked: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "return_lora_metadata": True}
    if issubclass(pipeline, StableDiffusionLoraLoaderMixin | StableDiffusionXLLoraLoaderMixin):
        state, alphas, metadata = pipeline.lora_state_dict(str(file), unet_config=network, **asked)
    elif "return_alphas" in inspect.signature(pipeline.lora_state_dict).parameters:
        state, alphas, metadata = pipeline.lora_state_dict(str(file), return_alphas=True, **asked)
    else:  # tensors `….alpha` stay among the others
        state, metadata = pipeline.lora_state_dict(str(file), **asked)
        alphas = {key: state.pop(key) for key in list(state) if key.endswith(".alpha")}
    return state, alphas or {}, metadata or {}


def _place(key: str, networks: Mapping[str, Any]) -> tuple[str, str, str]:
    """Part, layer and factor (A or B; empty for the name of a layer) of a name from diffusers' converter."""
    part, _, rest = key.partition(".")
    match = FACTOR.fullmatch(rest.replace(".processor.", "."))
    layer, which = (match["layer"], match["which"]) if match else (rest, "")
    if match and (projection := match["projection"]):
        if part in ("unet", "transformer"):
            layer += f".to_{projection}" + ".0" * (projection == "out")
        else:
            layer += f".{projection}_proj"
    # transformers' text encoders had this level before version 5.6, and some still have it.
    if part in networks and not hasattr(networks[part], "text_model"):
        layer = layer.removeprefix("text_model.")
    return part, layer, {"down": "A", "up": "B"}.get(which, which)


def _scale(
    place: tuple[str, str], rank: int, stated: Mapping[tuple[str, str], float], metadata: Mapping[str, Any]
) -> float:
    """α/r. α comes from the file's entry for the layer, else from its header (PEFT's format), else it is r."""
    part, layer = place
    if place in stated:
        return stated[place] / rank
    of_part = {key.removeprefix(f"{part}."): value for key, value in metadata.items() if key.startswith(f"{part}.")}
    if of_part.get("use_dora"):
        raise ValueError("it is DoRA; accepted: plain LoRA")
    alpha = float(of_part.get("lora_alpha", rank))
    for pattern, other in (of_part.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = float(other)
            break
    return alpha / (math.sqrt(rank) if of_part.get("use_rslora") else rank)


def _weight(network: nn.Module | None, layer: str) -> nn.Parameter | None:
    try:
        weight = None if network is None else network.get_submodule(layer).weight
    except AttributeError:
        return None
    return weight if isinstance(weight, nn.Parameter) else None


def _fits(factors: Factors, network: nn.Module | None, layer: str) -> bool:
    weight = _weight(network, layer)
    if weight is None:
        return False
    out, enter, *kernel = weight.shape
    rank = factors.A.shape[0]
    return factors.A.shape == (rank, enter, *kernel) and factors.B.shape == (out, rank, *(1 for _ in kernel))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converter: errors here report files that do not fit."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(before)
