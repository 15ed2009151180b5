"""The search of `assign` and `reward`: one model, one engine, and rows that say what noise is sought for them."""

import threading
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.estep.rows import Rows
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
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

#: Images side by side of a worker that counts them itself, as far as is known beforehand: few, as it bounds a time from above.
FEW_SLOTS = 8
#: What of a plan tells one search for rewards from another. Besides there is the precision that was asked for: where it is left
#: open, the rewards are not halved with the generator.
REWARDS = {"reward_fingerprints", "rewards"}


class Goal(Protocol):
    """What the noise of each row is sought for."""

    @property
    def config(self) -> SearchConfig:
        """How it is searched."""
        ...

    def rows(self, generator: OneStepGenerator, pairs: PairSet, decoder: Decoder) -> Rows:
        """The rows of a shard, with their objective. Raises UserError for what cannot be loaded."""
        ...


@dataclass(frozen=True)
class EngineSearch:
    """How a worker searches the noise of its rows; holds nothing that is loaded."""

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
        if self.settings.compile:  # not before the slots are counted: each batch size that is tried would be compiled
            compiled: Any = torch.compile(generator.trainable, dynamic=False)
            generator.trainable = compiled
        engine = Engine(generator, self.goal.config, slots, rows.objective, on_event=notes.append)
        records = RecordConfig(self.settings.seed, self.settings.store, plan.model_fingerprint, plan.config_fingerprint)
        return EngineSearcher(ShardAssigner(engine, rows, records), earlier, place.concurrent)

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
        """Images side by side: as the job says, or as many as fit on the GPU; what was planned is appended to `notes`."""
        settings = self.settings
        if settings.slots:
            return settings.slots
        if generator.device.type != "cuda":
            return min(CPU_SLOTS, self.plan.rows_per_shard)
        searched = self.searched(config, rows.objective, str(generator.device))
        return slots_on_gpu(searched, generator, settings.gpus_per_worker, settings.gpu_memory, notes)

    def searched(self, config: SearchConfig, objective: Objective, device: str) -> Searched:
        """What decides the memory that the search for an objective, whose own networks are on `device`, takes on a GPU."""
        plan, settings = self.plan, self.settings
        own = not isinstance(objective, Reconstruction)
        return Searched(
            self.model,
            settings.dtype,
            config,
            min(MOST_SLOTS, plan.rows_per_shard),
            plan.rows,
            settings.gradient_checkpointing,
            (lambda blank: on(blank, objective)) if own else None,
            {"asked": settings.dtype, **plan.model_dump(mode="json", include=REWARDS)} if own else None,
            device if own else "cpu",
            decodes=own,
            quantize=settings.quantize,
        )


class EngineSearcher:
    """A loaded engine that works through shards; of a concurrent place, shards that are there together share the slots."""

    def __init__(self, assigner: ShardAssigner, earlier: Assignments | None = None, concurrent: bool = False) -> None:
        self.assigner, self.earlier, self.concurrent = assigner, earlier, concurrent
        if concurrent:
            threading.Thread(target=assigner.serve, daemon=True).start()

    def search(self, shard: Shard, only: frozenset[int] | None) -> ShardResult:
        starts = None
        if self.earlier is not None:
            starts = self.earlier.found(shard.index, self.assigner.engine.generator.latent_shape)
        if self.concurrent:
            return self.assigner.submit(shard, starts, only).result()
        return self.assigner.assign(shard, starts, only)

    def usage(self) -> Usage:
        engine, rows = self.assigner.engine, self.assigner.rows
        return Usage(engine.slots, engine.computed, rows.waited, rows.killed())
