"""Low-rank adapters (Hu et al. 2021): train `W + α/r · B A` with the base weights W frozen, A and B of rank r.

The adapter is part of the network, as PEFT layers, until it is merged. A frozen copy of it can be the preserve term's teacher, so
that no second copy of the base weights is needed.
"""

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ortho_core.errors import UserError
from ortho_core.generators.kohya import write_kohya
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.lora_files import KOHYA_WEIGHTS, LORA_WEIGHTS, LoraFile
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.pipelines.adapter import PipelineAdapter
from ortho_core.text.parsing import json_object, texts_of

#: Names of the two adapters in a network: the trained one (PEFT's and diffusers' default name), and its frozen copy.
TRAINED, TEACHER = "default", "teacher"

#: Diffusers' names in an adapter file: the header entry that describes the adapter, and the prefixes of the networks' tensors.
DESCRIPTION, PREFIX = "lora_adapter_metadata", re.compile(r"^(unet|transformer)\.")


def add_lora(network: nn.Module, lora: Lora, seed: int) -> None:
    """Freeze the network and add a trainable float32 adapter, B = 0 and A ~ N(0, 1/r²), which leaves the output unchanged.

    A depends only on `seed`; the global random state is neither used nor changed. Raises UserError, naming the target, if a
    target matches no layer.
    """
    _inject(network, lora, TRAINED)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in _layers(network.modules()):
            A, B = (getattr(layer, name)[TRAINED].weight for name in ("lora_A", "lora_B"))
            A.copy_(torch.randn(A.shape, generator=draw) / lora.rank)
            B.zero_()


def lora_of(folder: ModelFolder) -> Lora | None:
    """The adapter's description of a LoRA folder; None for other folders. Raises UserError if the file is broken."""
    return None if folder.lora_base is None else read_lora(folder.path / LORA_WEIGHTS)[0]


def adapter_file(folder: ModelFolder) -> LoraFile:
    """The adapter of a LoRA folder, as a file to add to its base. Raises UserError if it is broken, or not a plain LoRA."""
    file = folder.path / LORA_WEIGHTS
    _, weights = read_lora(file)
    return LoraFile(file, 1.0, sum(".lora_A." in name for name in weights), on_text=False, option="")


def has_lora(network: nn.Module) -> bool:
    """Whether the network has an adapter that is not merged into its weights."""
    return hasattr(network, "peft_config")


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the trained adapter, in the order of the network's layers."""
    return [p for layer in _layers(network.modules()) for p in _parameters(layer, TRAINED)]


def keep_as_teacher(network: nn.Module) -> None:
    """Copy the adapter's present weights into a frozen second adapter, for `teacher_adapter`. An earlier copy is overwritten.

    Call it before the network is wrapped for DDP. Raises ValueError for a network without an adapter.
    """
    layers = _layers_or_raise(network.modules())
    if TEACHER not in layers[0].lora_A:
        trainable = {name for name, p in network.named_parameters() if p.requires_grad}
        _inject(network, _described(network), TEACHER)
        for layer in layers:
            layer.set_adapter(TRAINED)
        for name, p in network.named_parameters():
            p.requires_grad_(name in trainable)
    with torch.no_grad():
        for layer in layers:
            for kept, p in zip(_parameters(layer, TEACHER), _parameters(layer, TRAINED), strict=True):
                kept.copy_(p)


@contextmanager
def teacher_adapter(network: nn.Module) -> Iterator[None]:
    """In this block the network computes in eval mode with the copy of `keep_as_teacher`, or without adapter if there is no copy.

    Afterwards the active adapter and each training mode are restored; `requires_grad` is not touched. `network` is the module
    itself, not a DDP wrapper. Raises ValueError for a network without an adapter.
    """
    modules = list(network.modules())
    layers = _layers_or_raise(modules)
    training = [module for module in modules if module.training]
    before = [(layer, layer.active_adapter, layer.disable_adapters) for layer in layers]
    kept = TEACHER in layers[0].lora_A
    try:
        for module in training:
            vars(module)["training"] = False  # bypasses nn.Module's __setattr__, by far the slowest operation here
        for layer in layers:
            # Not PEFT's `set_adapter` and `enable_adapters`: they also change `requires_grad` of each weight, which must not
            # change under DDP or FSDP.
            layer._active_adapter, layer._disable_adapters = ([TEACHER], False) if kept else ([TRAINED], True)
        yield
    finally:
        for layer, active, disabled in before:
            layer._active_adapter, layer._disable_adapters = active, disabled
        for module in training:
            vars(module)["training"] = True


def write_lora(network: Any, folder: Path, kind: PipelineAdapter, title: str, base: str) -> None:
    """Write the adapter of a pipeline's network for `pipeline.load_lora_weights`, with rank and alpha; for UNets also as a kohya
    file for other programs, with `title` and `base` in its header."""
    from peft.utils import get_peft_model_state_dict

    # In PEFT's names: diffusers' converter knows its own names only for attention projections.
    weights = get_peft_model_state_dict(network, adapter_name=TRAINED)
    lora = _described(network)
    # Only these fields of PEFT's configuration, unlike diffusers: other versions of PEFT refuse fields that they do not know.
    described = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": list(lora.targets)}
    folder.mkdir(parents=True, exist_ok=True)
    if kind.has_single_file:
        write_kohya(folder / KOHYA_WEIGHTS, weights, lora, network.config, title=title, base=base)
    prefix = f"{kind.network}."
    save_file(
        {prefix + name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
        folder / LORA_WEIGHTS,
        # One entry: safetensors writes several in random order, and the fingerprint would change each time.
        {DESCRIPTION: json.dumps({prefix + name: value for name, value in described.items()})},
    )


def attach_lora(network: nn.Module, folder: Path) -> None:
    """Freeze the network and add the LoRA folder's adapter to it, trainable and float32.

    Raises UserError if the folder's weights are broken, not a plain LoRA, or made for another network.
    """
    from peft.utils import set_peft_model_state_dict

    lora, weights = read_lora(Path(folder) / LORA_WEIGHTS)
    _inject(network, lora, TRAINED)
    try:
        report = set_peft_model_state_dict(network, weights, adapter_name=TRAINED)
        missing = [name for name in report.missing_keys if f".{TRAINED}." in name]
        fits = not missing and not report.unexpected_keys
    except RuntimeError:  # a weight of another shape
        fits = False
    if not fits:
        raise UserError(
            f"{Path(folder) / LORA_WEIGHTS} does not fit its base model: its layers belong to another network"
        )


def merge_adapter(network: nn.Module) -> None:
    """Add the adapter's product to the weights it adapts, and remove all PEFT layers."""
    for name, module in list(network.named_modules()):
        for layer in _layers([module]):
            layer.merge(adapter_names=[TRAINED])
            network.set_submodule(name, layer.get_base_layer())
    del network.peft_config
    network.requires_grad_(False)


def _inject(network: nn.Module, lora: Lora, name: str) -> None:
    # Imported here: PEFT takes seconds, and a driver that only describes an adapter does not need it.
    from peft import LoraConfig, inject_adapter_in_model

    _check_targets(network, lora.targets)
    network.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    # New layers draw weights on the CPU, so the random state is forked. PEFT's warning about a second adapter is expected.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
        inject_adapter_in_model(config, network, name)
    for layer in _layers(network.modules()):
        layer.train(layer.get_base_layer().training)
        for p in _parameters(layer, name):
            p.data = p.data.float()


def _check_targets(network: nn.Module, targets: tuple[str, ...]) -> None:
    named = {name: module for name, module in network.named_modules() if ".lora_" not in name}
    layers = {name.removesuffix(".base_layer") for name, m in named.items() if isinstance(m, nn.Linear | nn.Conv2d)}
    for target in targets:
        matches = [name for name in named if name == target or name.endswith(f".{target}")]
        if not matches or not layers.issuperset(matches):
            other = next((name for name in matches if name not in layers), None)
            fault = f"matches {other}, which is none" if other else "matches none"
            raise UserError(
                f"LoRA target {target!r} {fault} of the network's linear and convolution layers; their names end in "
                f"{', '.join(_endings(layers))}"
            )


def _endings(names: set[str]) -> list[str]:
    """The last part of each dotted name; if it is a number, the last two parts."""
    parts = (name.split(".") for name in names)
    return sorted({".".join(p[-2:] if p[-1].isdigit() else p[-1:]) for p in parts})


def read_lora(file: Path) -> tuple[Lora, dict[str, Tensor]]:
    """The adapter's description, and its weights by their names in the network. Raises UserError for a file without a plain
    LoRA."""
    try:
        with safe_open(file, "pt") as stored:
            header = (stored.metadata() or {}).get(DESCRIPTION)
            weights = {PREFIX.sub("", name): stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        described = {PREFIX.sub("", k): v for k, v in json_object(header or "{}", "its header").items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} does not load as safetensors: {str(error).splitlines()[0]}") from error
    try:
        lora = Lora(int(described["r"]), float(described["lora_alpha"]), texts_of(described["target_modules"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{file} does not describe its adapter: rank, alpha or targets are missing in its header"
        ) from error
    other = [k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if described.get(k)]
    if other:
        raise UserError(
            f"{file} contains an adapter with {', '.join(other)}; accepted: plain LoRA, with one rank and one alpha"
        )
    return lora, weights


def _described(network: Any) -> Lora:
    config = network.peft_config[TRAINED]
    return Lora(config.r, config.lora_alpha, tuple(sorted(config.target_modules)))


def _layers(modules: Iterable[nn.Module]) -> list[Any]:
    """The modules that have an adapter."""
    from peft.tuners.lora import LoraLayer

    return [module for module in modules if isinstance(module, LoraLayer)]


def _layers_or_raise(modules: Iterable[nn.Module]) -> list[Any]:
    layers = _layers(modules)
    if not layers:
        raise ValueError("the network has no adapter: call `add_lora`, or load a LoRA folder with keep_adapter=True")
    return layers


def _parameters(layer: Any, name: str) -> list[nn.Parameter]:
    return [layer.lora_A[name].weight, layer.lora_B[name].weight]
