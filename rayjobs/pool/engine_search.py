"""The search of `assign` and `reward`: one model, one engine, and rows with an objective."""

import threading
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.engines import Engines
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.estep.rows import Rows
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.generators.compiled import allow_graphs
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.memory.costs import on
from ortho_core.memory.plan import CPU_SLOTS, MOST_SLOTS
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Shard
from ortho_core.records.assignments import Assignments
from ortho_core.records.parts import ShardResult
from ortho_core.records.plan import AssignmentPlan, ReconstructionPlan
from rayjobs.pool.config import PoolSettings
from rayjobs.pool.memory import Searched, slots_on_gpu
from rayjobs.pool.protocol import Decoder, Usage, WorkerPlace

#: Slots assumed for a worker whose slots are counted only after its start. Few, since they give an upper bound of a time.
FEW_SLOTS = 8
#: Fields of a plan that distinguish one search for rewards from another. The requested precision does so too: with "auto" the
#: rewards are not in half precision when the generator is.
REWARDS = {"reward_fingerprints", "rewards"}


class Goal(Protocol):
    """What the search optimises for each row."""

    @property
    def config(self) -> SearchConfig:
        """The settings of the search."""
        ...

    def rows(self, generator: OneStepGenerator, pairs: PairSet, decoder: Decoder) -> Rows:
        """The rows of a shard, with their objective. Raises UserError if a model or file cannot be loaded."""
        ...


@dataclass(frozen=True)
class EngineSearch:
    """How a worker searches the noise of its rows. It holds no loaded model, so it can be sent to workers."""

    settings: PoolSettings
    model: ModelFolder
    goal: Goal
    plan: AssignmentPlan
    pairs: PairSet
    #: Finished assignments to start from.
    warm_start: str | None = None

    @property
    def passes(self) -> int:
        return self.goal.config.passes * -(-self.plan.rows_per_shard // (self.settings.slots or FEW_SLOTS))

    def load(self, place: WorkerPlace, notes: list[str]) -> "EngineSearcher":
        plan, earlier = self.plan, None
        if self.warm_start is not None and isinstance(plan, ReconstructionPlan):
            earlier = Assignments(self.warm_start).planned_as("--warm-start", plan.warm_start)
        generator = self.generator(place.device)
        rows = self.goal.rows(generator, self.pairs, place.decoder)
        slots = self.slots(rows, generator, self.goal.config, notes)
        framing = plan.framing(self.model.image_size)
        sizes = () if framing.is_one_size else framing.sizes
        if (
            self.settings.compile
        ):  # only after the slots are counted: counting would compile every batch size that it tries
            allow_graphs(len(framing.sizes))
            compiled: Any = torch.compile(generator.trainable, dynamic=False)
            generator.trainable = compiled
        engines = Engines(generator, self.goal.config, slots, rows.objective, notes.append, sizes)
        records = RecordConfig(self.settings.seed, self.settings.store, plan.model_fingerprint, plan.config_fingerprint)
        return EngineSearcher(ShardAssigner(engines, rows, records), earlier, place.concurrent)

    def generator(self, device: str) -> OneStepGenerator:
        """The loaded model. Raises UserError."""
        settings = self.settings
        return load_generator(
            self.model,
            device,
            settings.dtype,
            gradient_checkpointing=settings.gradient_checkpointing,
            quantize=settings.quantize,
        )

    def slots(self, rows: Rows, generator: OneStepGenerator, config: SearchConfig, notes: list[str]) -> int:
        """The batch size: the job's, or as many images as fit on the GPU. A line on the plan is appended to `notes`."""
        settings = self.settings
        if settings.slots:
            return settings.slots
        if generator.device.type != "cuda":
            return min(CPU_SLOTS, self.plan.rows_per_shard)
        searched = self.searched(config, rows.objective, str(generator.device))
        return slots_on_gpu(searched, generator, settings.gpus_per_worker, settings.gpu_memory, notes)

    def searched(self, config: SearchConfig, objective: Objective, device: str) -> Searched:
        """What decides the GPU memory of a search; the objective's own networks, if it has some, are on `device`."""
        plan, settings = self.plan, self.settings
        has_networks = not isinstance(objective, Reconstruction)
        return Searched(
            self.model,
            settings.dtype,
            config,
            min(MOST_SLOTS, plan.rows_per_shard),
            plan.rows,
            settings.gradient_checkpointing,
            (lambda blank: on(blank, objective)) if has_networks else None,
            {"asked": settings.dtype, **plan.model_dump(mode="json", include=REWARDS)} if has_networks else None,
            device if has_networks else "cpu",
            decodes=has_networks,
            quantize=settings.quantize,
            sizes=len(plan.framing(self.model.image_size).sizes),
        )


class EngineSearcher:
    """A loaded engine that searches shards. In a concurrent place, shards that are searched at once share the slots."""

    def __init__(self, assigner: ShardAssigner, earlier: Assignments | None = None, concurrent: bool = False) -> None:
        self.assigner, self.earlier, self.concurrent = assigner, earlier, concurrent
        if concurrent:
            threading.Thread(target=assigner.serve, daemon=True).start()

    def search(self, shard: Shard, only: frozenset[int] | None) -> ShardResult:
        starts = None
        if self.earlier is not None:
            generator = self.assigner.engines.generator
            starts = self.earlier.found(shard.index, generator.latent_shape, generator.image_size)
        if self.concurrent:
            return self.assigner.submit(shard, starts, only).result()
        return self.assigner.assign(shard, starts, only)

    def usage(self) -> Usage:
        engines, rows = self.assigner.engines, self.assigner.rows
        return Usage(engines.slots, engines.computed, rows.waited, rows.killed())
