"""The GPU memory of a search and of an update for one model. It is counted once and cached in ~/.cache/ortho.

Every cost is linear in the rows, so it is counted for two numbers of rows. Axes: S slots, B rows of an update, P preserve rows.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.precision import network_dtype
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.memory.blank import blank_generator, blank_network, bytes_of
from ortho_core.memory.live import NOTHING, Linear, LiveBytes, rounded, without_numbers
from ortho_core.memory.moments import Moments, at_most, moments_of
from ortho_core.memory.searches import count_matching, count_slots
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher
from ortho_core.mstep.update import MStep
from ortho_core.storage.local import LocalStore
from ortho_core.text.parsing import regular_bytes

#: To be raised when the counting changes, so that older cached counts are not read.
VERSION = 3
COUNTED_AT = (1, 3)
T = TypeVar("T", bound="SearchCosts | UpdateCosts")


@dataclass(frozen=True)
class Weights:
    """Bytes of the parts of a model; the network is in its loaded precision."""

    network: int
    text: int
    autoencoder: int

    @property
    def all(self) -> int:
        return self.network + self.text + self.autoencoder


@dataclass(frozen=True)
class SearchCosts:
    """Bytes of a search: weights, slots between evaluations, the extra bytes of an evaluation, inputs and outputs."""

    weights: Weights
    #: Bytes of S slots between evaluations.
    slots: Linear
    #: Additional bytes while S slots are evaluated.
    evaluation: Linear
    #: Bytes while prompts or images are encoded, while latents are decoded, and during forwards without a gradient.
    text: Linear
    encode: Linear
    decode: Linear
    forward: Linear
    #: Bytes while a tile, a quarter of an image, is encoded or decoded.
    encode_tile: int
    decode_tile: int
    #: Bytes of one encoded prompt in the cache.
    prompt: int
    #: The objective's inputs of one row, and its image while the row waits.
    row: int
    image: int


@dataclass(frozen=True)
class UpdateCosts:
    """Bytes of an update of the M-step."""

    weights: Weights
    #: Bytes between updates, without `weights`: trained parameters, optimiser state, averaged weights, the teacher's network.
    kept: int
    #: Additional bytes for B rows and P preserve rows, at the moments when most activations and gradients are alive.
    moments: Moments
    #: Bytes of one encoded prompt in the cache.
    prompt: int = 0
    #: Bytes of a search for B rows with the network that trains: between updates, and additionally during an evaluation.
    slots: Linear = NOTHING
    evaluation: Linear = NOTHING

    def update(self, rows: int, preserve_rows: int) -> int:
        return at_most(self.moments, rows, preserve_rows)


def search_costs(
    model: ModelFolder,
    dtype: str,
    config: SearchConfig,
    *,
    gradient_checkpointing: bool = False,
    quantize: str = "none",
    objective: Callable[[OneStepGenerator], Objective] | None = None,
    decided_by: Mapping[str, object] | None = None,
    device: str = "cpu",
) -> SearchCosts:
    """The costs of a search by `config`. The objective is the reconstruction, or `objective(generator)`.

    `decided_by` identifies the objective in the cache. `device` is the nominal device of the tensors: that of the objective's
    networks. If a model cannot be counted, the error of its code is raised.
    """
    shape = config.brief(2).model_dump(include=SearchConfig.model_fields.keys() | AssignConfig.model_fields.keys())
    # Only zero or nonzero matters, not the weight.
    shape |= {name: bool(value) for name, value in shape.items() if name.endswith("_weight")}
    shape |= {"measures": config.measures and config.sensitivity_rank, "steps": config.steps}
    computes_in = network_dtype(dtype, "cuda", model.half)
    key = {
        "kind": "search",
        "dtype": str(computes_in),
        "checkpointing": gradient_checkpointing,
        "quantize": quantize,
        **shape,
        **(decided_by or {}),
    }

    def count() -> SearchCosts:
        with without_numbers() as live, torch.device(device):
            generator = blank_generator(model, computes_in, gradient_checkpointing, quantize)
            target = objective(generator) if objective is not None else _reconstruction(generator, config)
            return _count_search(live, model, generator, target, config)

    return _kept(model, key, SearchCosts, count)


def update_costs(
    model: ModelFolder,
    config: MStepConfig,
    *,
    dtype: str,
    lora: Lora | None,
    gradient_checkpointing: bool,
    second_network: bool,
    quantize: str = "none",
    search: AssignConfig | None = None,
    searches_in: torch.dtype | None = None,
    as_on_a_gpu: bool = True,
) -> UpdateCosts:
    """The costs of an update of all weights, or of an adapter over frozen weights of `dtype`.

    `second_network`: the teacher is a second network. `search` is the search of online matching, if any, and `searches_in` its
    autocast dtype, if any. If a model cannot be counted, the error of its code is raised.
    """
    shape = config.model_dump(include={"optimizer", "mixed_precision", "ema", "preserve_differences"})
    shape |= {name: value > 0 for name, value in config.model_dump().items() if name.endswith("_weight")}
    key: dict[str, object] = {"kind": "update", "dtype": dtype, "checkpointing": gradient_checkpointing, **shape}
    key |= {"lora": None if lora is None else asdict(lora), "second_network": second_network, "on_a_gpu": as_on_a_gpu}
    key["quantize"] = quantize
    key |= {"search": None if search is None else search.model_dump(), "searches_in": str(searches_in)}

    def count() -> UpdateCosts:
        with without_numbers(as_on_a_gpu) as live:
            where = dtype, lora, gradient_checkpointing, second_network, quantize
            return _count_update(live, model, config, *where, search, searches_in)

    return _kept(model, key, UpdateCosts, count)


def _reconstruction(generator: OneStepGenerator, config: SearchConfig) -> Objective:
    if not isinstance(config, AssignConfig):
        raise TypeError("a search whose config is not an AssignConfig needs an objective")
    return Reconstruction(generator, config)


def _count_search(
    live: LiveBytes,
    model: ModelFolder,
    generator: OneStepGenerator,
    objective: Objective,
    config: SearchConfig,
) -> SearchCosts:
    kept, added, rows = [], [], 0
    for count in COUNTED_AT:
        inputs = objective.blank_inputs(count)
        rows = sum(tensor.nbytes for tensor in inputs.values()) // count
        slots, step = count_slots(live, generator, objective, config, count, inputs)
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

    def forward(count: int) -> int:
        noise, condition = generator.base_noise([0] * count), generator.encode_prompts([""] * count)
        inputs = sum(rounded(tensor.nbytes) for tensor in (noise, *condition.tensors.values()))
        return inputs + live.peak_of(lambda: generator.denoise(noise, condition))

    with torch.no_grad():
        forwards = forward(COUNTED_AT[0]), forward(COUNTED_AT[1])

    with torch.no_grad():
        tiles = (
            (0, 0)
            if model.class_config is not None
            else (
                live.peak_of(lambda: generator.encode_images(images(1, 2))),
                live.peak_of(lambda: generator.decode(latents(1, 2))),
            )
        )
    # Other objectives cache their data of a prompt as the condition is cached.
    prompt = _bytes_of_prompt(generator) if isinstance(objective, Reconstruction) else rows
    image = 12 * Y * X if isinstance(objective, Reconstruction) else 0
    return SearchCosts(
        _weights(generator),
        Linear.through(COUNTED_AT, (kept[0], kept[1])),
        Linear.through(COUNTED_AT, (added[0], added[1])),
        of(lambda count: generator.encode_prompts([""] * count)),
        of(lambda count: generator.encode_images(images(count))),
        of(lambda count: generator.decode(latents(count))),
        Linear.through(COUNTED_AT, forwards),
        *tiles,
        prompt=prompt,
        row=rows,
        image=image,
    )


@torch.no_grad()
def _bytes_of_prompt(generator: OneStepGenerator) -> int:
    """Bytes of one encoded prompt; each tensor is a separate allocation."""
    return sum(rounded(tensor.nbytes) for tensor in generator.encode_prompts([""]).tensors.values())


def _count_update(
    live: LiveBytes,
    model: ModelFolder,
    config: MStepConfig,
    dtype: str,
    lora: Lora | None,
    gradient_checkpointing: bool,
    second_network: bool,
    quantize: str,
    search: AssignConfig | None,
    searches_in: torch.dtype | None,
) -> UpdateCosts:
    frozen: torch.dtype = getattr(torch, dtype)
    generator = blank_generator(model, frozen, gradient_checkpointing, quantize)
    weights = _weights(generator)
    before = live.live
    network = generator.trainable
    if lora is not None:
        with _already_in_place():
            add_lora(network, lora, 0)
    else:
        network.requires_grad_(True)
    teacher: FrozenTeacher | AdapterTeacher | None = None
    if config.preserves:
        other = blank_network(model, frozen, quantize=quantize) if second_network else None
        teacher = FrozenTeacher(other) if other is not None else AdapterTeacher(network)
    step = MStep(generator, config, 10, teacher=teacher)
    step.update(_blank_batch(generator, 1, int(config.preserves), config))  # makes the optimiser's state
    kept = live.live - before

    def trace(rows: int, preserve_rows: int) -> list[int]:
        batch = _blank_batch(generator, rows, preserve_rows, config)
        batch_bytes = sum(_bytes_of_batch(batch))
        return [batch_bytes + alive for alive in live.trace_of(lambda: step.update(batch))]

    pair = 2 if config.preserve_differences else 1
    P = pair * int(config.preserves)
    # At least two rows: a sum over a single row uses other operations.
    few, more = trace(2, 2 * P), trace(3, 2 * P)
    moments = moments_of(few, more, trace(2, 3 * P) if P else few, (2, 2 * P), max(P, 1))
    prompt = _bytes_of_prompt(generator)
    if search is None:
        return UpdateCosts(weights, kept, moments, prompt)
    one, three = (_blank_batch(generator, count, 0, config) for count in COUNTED_AT)
    matched = count_matching(live, step, (one, three), search, searches_in)
    return UpdateCosts(weights, kept, moments, prompt, *matched)


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
    """A context in which `Module.to` does nothing: PEFT calls it without need, and fake tensors do not support it."""
    usual = nn.Module.to
    nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.to = usual  # type: ignore[method-assign]


def _weights(generator: OneStepGenerator) -> Weights:
    other: Any = generator
    text = sum(map(bytes_of, getattr(other, "text_encoders", ())))
    return Weights(
        bytes_of(generator.trainable), text, bytes_of(other.pipeline.vae) if hasattr(other, "pipeline") else 0
    )


def on(generator: OneStepGenerator, objective: Objective) -> Objective:
    """The same objective around another generator."""
    other: Any = copy.copy(objective)
    other.generator = generator
    return other


def cache_folder() -> Path:
    """The folder of the cached counts, one per user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ortho" / "memory"


def _kept(model: ModelFolder, key: Mapping[str, object], kind: type[T], count: Callable[[], T]) -> T:
    """The cached costs for this model and key; else the result of `count`, which is cached if the cache can be written."""
    import diffusers

    decides = {
        "version": VERSION,
        "model": {"kind": model.kind, **model.base.configurations},
        "size": model.image_size,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        **key,
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]
    file = cache_folder() / f"{name}.json"
    with suppress(OSError, ValueError):  # no file, or not a valid one
        return TypeAdapter(kind).validate_json(regular_bytes(file))
    counted = count()
    with suppress(OSError):
        cache = LocalStore(file.parent)
        cache.sweep()
        cache.replace(file.name, json.dumps(asdict(counted)).encode())
    return counted
