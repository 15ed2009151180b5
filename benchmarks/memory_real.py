"""Planned memory compared with live bytes while the real code runs a real model on a CPU.

Weights are not counted: they are loaded before counting begins. Use a small model, since everything is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.engine import Engine, Found
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.queue import Request, requests_of
from ortho_core.estep.rows import PairRows, Rows
from ortho_core.evaluation.features import TINY_CLIP, find_features
from ortho_core.evaluation.judge import Judge, JudgeModels
from ortho_core.evaluation.rows import EvaluationRows
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.memory.costs import on, search_costs, update_costs
from ortho_core.memory.live import Linear, LiveBytes, rounded
from ortho_core.memory.plan import plan_search, plan_update
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.matching import OnlineMatching
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher
from ortho_core.mstep.update import MStep, half_dtype
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Row, Shard
from ortho_core.rewards.combined import load_rewards
from ortho_core.rewards.objective import RewardObjective
from ortho_core.rewards.rows import PromptRows

#: Enough memory for everything: the comparison is of bytes, not of choices.
PLENTY = 1 << 50


@dataclass(frozen=True)
class Compared:
    """Bytes without the weights."""

    verb: str
    rows: int
    planned: int
    counted: int

    @property
    def ratio(self) -> float:
        return self.planned / self.counted


class DistinctPrompts(PairSet):
    """A pair set with a different prompt in each row, for which caches are planned."""

    def read(self, shard: Shard) -> Iterator[Row]:
        for row in super().read(shard):
            yield row if isinstance(row, tuple) else replace(row, prompt=f"{row.prompt}, {row.row}")


def parts(model: ModelFolder, rows: int) -> list[Compared]:
    """Encode prompts and images, decode latents, and run noise forward without a gradient."""
    generator, costs = load_generator(model), search_costs(model, "float32", AssignConfig())
    images, latents = torch.rand(rows, 3, *generator.image_size), torch.randn(rows, *model.target_shape)
    texts = [f"a picture, {number}" for number in range(rows)]
    with torch.no_grad(), LiveBytes() as live:
        noise, condition = generator.base_noise(list(range(rows))), generator.encode_prompts(texts)
        works: dict[str, tuple[Linear, Callable[[], object], Sequence[Tensor]]] = {
            "prompts encoded": (costs.text, lambda: generator.encode_prompts(texts), ()),
            "images encoded": (costs.encode, lambda: generator.encode_images(images), (images,)),
            "latents decoded": (costs.decode, lambda: generator.decode(latents), (latents,)),
            "forward": (
                costs.forward,
                lambda: generator.denoise(noise, condition),
                (noise, *condition.tensors.values()),
            ),
        }
        return [
            Compared(name, rows, planned(rows), live.peak_of(work) + sum(rounded(tensor.nbytes) for tensor in given))
            for name, (planned, work, given) in works.items()
        ]


def searched(verb: str, model: ModelFolder, pairs: Path, slots: int, config: SearchConfig, shards: int = 1) -> Compared:
    """`assign`, `evaluate` or `reward` with three rows per slot: the engine, its queue, and the code that uses its results."""
    generator, rows_of = load_generator(model), DistinctPrompts(pairs)
    found: list[Found] = []
    rows, own = _rows(verb, generator, rows_of, config)
    shard = rows_of.shards(3 * slots)[0]
    costs = search_costs(
        model,
        "float32",
        config,
        objective=(lambda blank: on(blank, rows.objective)) if own else None,
        decided_by={"benchmark": "clip"} if own else None,
    )
    plan = plan_search(costs, PLENTY, slots, 3 * slots, decodes=verb != "assign")
    assert plan.slots == slots
    with LiveBytes() as live:
        engine = Engine(generator, config, slots, rows.objective)

        def search() -> None:
            found.extend(engine.run(_requests(rows, shard)))

        def look() -> None:
            pairs, kept = zip(*(one.key for one in found), strict=True)
            noise = torch.stack(
                [engine.space.noise(generator.base_noise([f.seed]), f.parameters[None])[0] for f in found]
            )
            for _ in rows.columns(found, pairs, kept, noise, generator.base_noise([one.seed for one in found])):
                pass

        before = live.live
        counted = live.peak_of(search)
        if verb != "assign":
            counted = max(counted, live.live - before + live.peak_of(look))
    return Compared(verb, slots, plan.peak - costs.weights.all, counted)


def _rows(verb: str, generator: OneStepGenerator, pairs: PairSet, config: SearchConfig) -> tuple[Any, bool]:
    prompts = PromptCache(generator)
    if verb == "reward":
        return PromptRows(RewardObjective(generator, load_rewards("clip", {"clip": TINY_CLIP})), prompts, pairs), True
    assert isinstance(config, AssignConfig)
    objective = Reconstruction(generator, config)
    if verb == "assign":
        return PairRows(objective, prompts, pairs, True), False
    judge = Judge(JudgeModels(find_features("tiny-clip", Path()), None, None, {}, None), "cpu")
    return EvaluationRows(objective, prompts, pairs, judge, 0, True), False


def _requests(rows: Rows, shard: Shard) -> Iterator[Request]:
    """Submits the rows of a shard as `ShardAssigner` does."""
    numbers = count()
    for batch in rows.batches(shard, [], None):
        seeds = [next(numbers) for _ in batch.pairs]
        yield from requests_of(list(zip(batch.pairs, batch.kept, strict=True)), seeds, batch.inputs)


def updated(
    model: ModelFolder,
    rows: int,
    preserve_rows: int,
    config: MStepConfig,
    lora: Lora | None,
    online: bool = False,
) -> Compared:
    """`train`: the second of two updates, with teacher and encoded prompts. `online`: each after a search for its noise."""
    search = AssignConfig(patience=0, steps=3) if online else None
    half = half_dtype(torch.device("cpu"), config)
    dtype = "float32" if lora is None or half is None else str(half).removeprefix("torch.")
    costs = update_costs(
        model,
        config,
        dtype=dtype,
        lora=lora,
        gradient_checkpointing=False,
        second_network=lora is None,
        search=search,
        searches_in=half,
        as_on_a_gpu=False,
    )
    plan = plan_update(costs, PLENTY, rows, preserve_rows, 1, 0, False, rows + preserve_rows)
    generator = load_generator(model, "cpu", dtype)
    parts = list(range(rows)), list(range(rows, rows + preserve_rows))
    images = torch.rand(rows, 3, *generator.image_size)
    with LiveBytes() as live:
        prompts = PromptCache(generator)
        network = generator.trainable
        if lora is None:
            network.requires_grad_(True)
        else:
            add_lora(network, lora, 0)
        teacher = AdapterTeacher(network) if lora is not None else FrozenTeacher.copy_of(network)
        step = MStep(generator, config, 10, teacher=teacher)
        matching = OnlineMatching(generator, step.parameters, search, half=half) if search is not None else None

        def once() -> None:
            batch = _batch(generator, prompts, images, *parts, config)
            if matching is not None:
                batch, _ = matching(batch, 3)
            step.update(batch)

        once()
        between = live.live
        counted = between + live.peak_of(once)
    said = ["train", *([f"--lora-rank {lora.rank}"] if lora else []), *(["--noise online"] if online else [])]
    return Compared(
        " ".join([*said, f"--mixed-precision {config.mixed_precision}"]), rows, plan.peak - plan.weights, counted
    )


@torch.no_grad()
def _batch(
    generator: OneStepGenerator,
    prompts: PromptCache,
    images: Tensor,
    own: list[int],
    fresh: list[int],
    config: MStepConfig,
) -> SftBatch:
    condition = prompts([f"a picture, {number}" for number in (*own, *fresh)])
    return SftBatch(
        generator.base_noise(own),
        condition[: len(own)],
        generator.encode_images(images),
        images if config.pixel_l1_weight else None,
        generator.base_noise(fresh),
        condition[len(own) :],
    )


def everything(model: ModelFolder, pairs: Path, slots: int = 8, rows: int = 8) -> Iterator[Compared]:
    """The rows of every verb, at small sizes."""
    yield from parts(model, rows)
    yield searched("assign", model, pairs, slots, AssignConfig())
    pixel = searched("assign", model, pairs, slots, AssignConfig(pixel_l1_weight=1.0))
    yield replace(pixel, verb="assign --pixel-l1-weight 1")
    yield searched("evaluate", model, pairs, slots, AssignConfig(steps=6, patience=0))
    yield searched("reward", model, pairs, slots, SearchConfig(steps=6))
    for precision in ("no", "bf16"):
        for lora in (None, Lora(4, 4.0)):
            for online in (False, True):
                yield updated(model, rows, rows // 2, MStepConfig(mixed_precision=precision), lora, online)
