"""What a search and an update cost of a GPU's memory, for one model: counted once, and kept in ~/.cache/ortho.

Everything is linear in the rows, so it is counted at two numbers of them. Axes: S slots, B rows of an update, P preserve rows.
"""

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.curvature import Sensitivity
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.estep.slots import empty_slots
from ortho_core.estep.space import noise_space
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.precision import network_dtype
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.memory.blank import blank_generator, blank_text_encoders, bytes_of
from ortho_core.memory.live import Linear, LiveBytes, without_numbers
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher
from ortho_core.mstep.update import MStep
from ortho_core.text.parsing import regular_bytes

#: Raised whenever something else is counted, so that what is kept from before is not read.
VERSION = 1
COUNTED_AT = (1, 3)
T = TypeVar("T", bound="SearchCosts | UpdateCosts")


@dataclass(frozen=True)
class Weights:
    """Bytes of the parts of a model, the network's in the precision that it is loaded in."""

    network: int
    text: int
    autoencoder: int

    @property
    def all(self) -> int:
        return self.network + self.text + self.autoencoder


@dataclass(frozen=True)
class SearchCosts:
    """Bytes that a search takes: weights, slots between evaluations, what an evaluation adds, and what goes in and out."""

    weights: Weights
    #: Of S slots, between evaluations.
    slots: Linear
    #: On top, while S slots are evaluated.
    evaluation: Linear
    #: While so many images are encoded, latents decoded, and noise is run forward without a gradient.
    encode: Linear
    decode: Linear
    forward: Linear
    #: While a quarter of an image is encoded and decoded: a tile.
    encode_tile: int
    decode_tile: int
    #: The condition of one prompt.
    prompt: int
    #: The objective's inputs of one row.
    row: int


@dataclass(frozen=True)
class UpdateCosts:
    """Bytes that an update of the M-step takes."""

    weights: Weights
    #: Between updates: what trains, the optimiser's state, an average, a second network as the teacher; not `weights`.
    kept: int
    #: On top, while B rows and P preserve rows are computed: gradients and activations.
    base: int
    row: int
    preserve_row: int

    def update(self, rows: int, preserve_rows: int) -> int:
        return self.base + self.row * rows + self.preserve_row * preserve_rows


def search_costs(
    model: ModelFolder,
    dtype: str,
    config: SearchConfig,
    *,
    gradient_checkpointing: bool = False,
    objective: Callable[[OneStepGenerator], Objective] | None = None,
    decided_by: Mapping[str, object] | None = None,
    device: str = "cpu",
) -> SearchCosts:
    """Of a search by `config`, for the reconstruction or the `objective` of a generator, which `decided_by` tells apart.

    `device` is where the tensors pretend to be: where the objective's own networks are.

    Raises whatever goes wrong where a model cannot be counted.
    """
    shape = config.brief(2).model_dump(include=SearchConfig.model_fields.keys() | AssignConfig.model_fields.keys())
    # Whether a term is there matters, not its weight.
    shape |= {name: bool(value) for name, value in shape.items() if name.endswith("_weight")}
    shape |= {"measures": config.measures and config.sensitivity_rank, "steps": config.steps}
    computes_in = network_dtype(dtype, "cuda", halves=model.class_config is None)
    key = {
        "kind": "search",
        "dtype": str(computes_in),
        "checkpointing": gradient_checkpointing,
        **shape,
        **(decided_by or {}),
    }

    def count() -> SearchCosts:
        with without_numbers() as live, torch.device(device):
            generator = blank_generator(model, computes_in, gradient_checkpointing)
            wanted = objective(generator) if objective is not None else _reconstruction(generator, config)
            return _count_search(live, model, generator, wanted, config, computes_in)

    return _kept(model, key, SearchCosts, count)


def update_costs(
    model: ModelFolder,
    config: MStepConfig,
    *,
    dtype: str,
    lora: Lora | None,
    gradient_checkpointing: bool,
    second_network: bool,
) -> UpdateCosts:
    """Of an update of all weights, or of an adapter, over frozen weights of `dtype`; `second_network`: the teacher is one.

    Raises whatever goes wrong where a model cannot be counted.
    """
    shape = config.model_dump(include={"optimizer", "mixed_precision", "ema", "preserve_differences"})
    shape |= {name: value > 0 for name, value in config.model_dump().items() if name.endswith("_weight")}
    key: dict[str, object] = {"kind": "update", "dtype": dtype, "checkpointing": gradient_checkpointing, **shape}
    key |= {"lora": None if lora is None else asdict(lora), "second_network": second_network}

    def count() -> UpdateCosts:
        with without_numbers() as live:
            return _count_update(live, model, config, dtype, lora, gradient_checkpointing, second_network)

    return _kept(model, key, UpdateCosts, count)


def _reconstruction(generator: OneStepGenerator, config: SearchConfig) -> Objective:
    if not isinstance(config, AssignConfig):
        raise TypeError("a search that is no reconstruction needs an objective")
    return Reconstruction(generator, config)


def _count_search(
    live: LiveBytes,
    model: ModelFolder,
    generator: OneStepGenerator,
    objective: Objective,
    config: SearchConfig,
    dtype: torch.dtype,
) -> SearchCosts:
    kept, added, rows = [], [], 0
    for count in COUNTED_AT:
        inputs = objective.blank_inputs(count)
        rows = sum(tensor.nbytes for tensor in inputs.values()) // count
        slots, step = _count_slots(live, generator, objective, config, count, inputs)
        kept.append(slots)
        added.append(step)
    Y, X = generator.image_size

    @torch.no_grad()
    def of(work: Callable[[int], object]) -> Linear:
        counted = [live.peak_of(lambda count=count: work(count)) for count in COUNTED_AT]  # type: ignore[misc]
        return Linear.through(COUNTED_AT, (counted[0], counted[1]))

    def images(count: int, part: int = 1) -> Tensor:
        return torch.zeros(count, 3, Y // part, X // part)

    c, h, w = model.target_shape

    def latents(count: int, part: int = 1) -> Tensor:
        return torch.zeros(count, c, h // part, w // part)

    def forward(count: int) -> Tensor:
        noise = torch.zeros(count, *generator.latent_shape)
        return generator.denoise(noise, generator.encode_prompts([""] * count))

    with torch.no_grad():
        tiles = (
            (0, 0)
            if model.class_config is not None
            else (
                live.peak_of(lambda: generator.encode_images(images(1, 2))),
                live.peak_of(lambda: generator.decode(latents(1, 2))),
            )
        )
    return SearchCosts(
        _weights(model, generator, dtype),
        Linear.through(COUNTED_AT, (kept[0], kept[1])),
        Linear.through(COUNTED_AT, (added[0], added[1])),
        of(lambda count: generator.encode_images(images(count))),
        of(lambda count: generator.decode(latents(count))),
        of(forward),
        *tiles,
        prompt=sum(tensor.nbytes for tensor in generator.encode_prompts([""]).tensors.values()),
        row=rows,
    )


def _count_slots(
    live: LiveBytes,
    generator: OneStepGenerator,
    objective: Objective,
    config: SearchConfig,
    count: int,
    inputs: Mapping[str, Tensor],
) -> tuple[int, int]:
    """Bytes of so many slots between evaluations, and what two evaluations need on top."""
    space = noise_space(config, generator.latent_shape)
    sensitivity = None
    if config.measures:
        k, device = config.sensitivity_rank, generator.device
        directions = torch.zeros(k, *generator.latent_shape, device=device)
        sensitivity = Sensitivity(directions, torch.ones(k, device=device), 1.0)
    base = torch.zeros(count, *generator.latent_shape, device=generator.device)
    before = live.live
    slots = empty_slots(space, objective, config, sensitivity, base, inputs)
    slots.enter(torch.arange(count, device=base.device), base, torch.zeros_like(slots.x), inputs)
    kept = live.live - before

    def evaluate() -> None:
        slots.step()
        slots.step()

    return kept, live.peak_of(evaluate)


class _BlankStep(MStep):
    """An update whose gradient has a norm that no tensor says: the host cannot read one without numbers."""

    def _clip(self, terms: Tensor) -> tuple[Tensor, float]:
        nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return terms, self.config.max_grad_norm


def _count_update(
    live: LiveBytes,
    model: ModelFolder,
    config: MStepConfig,
    dtype: str,
    lora: Lora | None,
    gradient_checkpointing: bool,
    second_network: bool,
) -> UpdateCosts:
    frozen: torch.dtype = getattr(torch, dtype)
    generator = blank_generator(model, frozen, gradient_checkpointing)
    weights = _weights(model, generator, frozen)
    before = live.live
    network = generator.trainable
    if lora is not None:
        with _already_in_place():
            add_lora(network, lora, 0)
    else:
        network.requires_grad_(True)
    teacher: FrozenTeacher | AdapterTeacher | None = None
    if config.preserves:
        other = blank_generator(model, torch.float32).trainable if second_network else None
        teacher = FrozenTeacher(other) if other is not None else AdapterTeacher(network)
    step = _BlankStep(generator, teacher, config, 10)
    step.update(_blank_batch(generator, 1, int(config.preserves), config))  # makes the optimiser's state
    kept = live.live - before

    def peak(rows: int, preserve_rows: int) -> int:
        batch = _blank_batch(generator, rows, preserve_rows, config)
        return live.peak_of(lambda: step.update(batch)) + sum(_bytes_of_batch(batch))

    pair = 2 if config.preserve_differences else 1
    P = pair * int(config.preserves)
    first = peak(1, P)
    row = peak(2, P) - first
    preserve_row = (peak(1, 2 * P) - first) // P if P else 0
    return UpdateCosts(weights, kept, first - row - P * preserve_row, row, preserve_row)


def _blank_batch(generator: OneStepGenerator, rows: int, preserve_rows: int, config: MStepConfig) -> SftBatch:
    if config.preserve_differences:
        preserve_rows = max(2, preserve_rows) if preserve_rows else 0
    noise, condition = generator.base_noise([0] * rows), generator.encode_prompts([""] * rows)
    images = torch.zeros(rows, 3, *generator.image_size)
    with torch.no_grad():
        targets = generator.denoise(noise, condition)
    return SftBatch(
        noise,
        condition,
        targets,
        images if config.pixel_l1_weight else None,
        generator.base_noise([0] * preserve_rows) if preserve_rows else None,
        generator.encode_prompts([""] * preserve_rows) if preserve_rows else None,
    )


def _bytes_of_batch(batch: SftBatch) -> Iterator[int]:
    for value in vars(batch).values():
        if isinstance(value, Tensor):
            yield value.nbytes
        elif value is not None:
            yield from (tensor.nbytes for tensor in value.tensors.values())


@contextmanager
def _already_in_place() -> Iterator[None]:
    """Inside, a module's conversions do nothing: PEFT moves its layers to where they are, and tensors without numbers cannot."""
    usual = nn.Module.to
    nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.to = usual  # type: ignore[method-assign]


def _weights(model: ModelFolder, generator: OneStepGenerator, dtype: torch.dtype) -> Weights:
    autoencoder: Any = getattr(generator, "autoencoder", None)
    text = sum(map(bytes_of, blank_text_encoders(model, dtype)))
    return Weights(bytes_of(generator.trainable), text, 0 if autoencoder is None else bytes_of(autoencoder))


def on(generator: OneStepGenerator, objective: Objective) -> Objective:
    """The same objective around another generator."""
    other: Any = copy.copy(objective)
    other.generator = generator
    return other


def cache_folder() -> Path:
    """Where counts are kept, of every user by itself."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ortho" / "memory"


def _kept(model: ModelFolder, key: Mapping[str, object], kind: type[T], count: Callable[[], T]) -> T:
    """What was counted before, by what decides it; else what is counted now. A cache that cannot be used costs its time."""
    import diffusers

    decides = {
        "version": VERSION,
        "model": {"kind": model.kind, **model.base.configurations},
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        **key,
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]
    file = cache_folder() / f"{name}.json"
    with suppress(OSError, ValueError):  # no file, or one of something else
        return TypeAdapter(kind).validate_json(regular_bytes(file))
    counted = count()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as fresh:
            json.dump(asdict(counted), fresh)
        os.replace(fresh.name, file)
    return counted
