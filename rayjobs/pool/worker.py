"""What each actor of the E-step's pool does: hold the model, turn shards into part files, say how it goes."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ortho_core.errors import RunFailed, UserError
from ortho_core.estep.capacity import slots_that_fit
from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.estep.rows import PairRows, Rows
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.pairs import PairSet, Shard
from ortho_core.pairs.decoding import Decode, decode_in_threads, usable_rows
from ortho_core.pairs.rows import Failure
from ortho_core.records.assignments import Assignments, Start
from ortho_core.records.parts import ShardResult
from ortho_core.storage.open import open_store
from rayjobs.pool.ledger import Ledger, Task
from rayjobs.pool.turns import Turns
from rayjobs.verb.plan import fingerprint
from rayjobs.verb.session import innermost

#: A shard that was under way so often when its worker died is quarantined instead of begun again.
DEATHS = 4


def packed(task: Task, shard: Shard) -> dict[str, Any]:
    """A task as a row of a Ray Data block."""
    only = None if task.only is None else sorted(task.only)
    return {"task": json.dumps({"revision": task.revision, "only": only, "shard": vars(shard)})}


def unpacked(text: str) -> tuple[Task, Shard]:
    content = json.loads(text)
    only = None if content["only"] is None else frozenset(content["only"])
    shard = Shard(**content["shard"])
    return Task(shard.index, content["revision"], only), shard


def receipt(task: Task, **told: Any) -> dict[str, Any]:
    """What the driver hears of a task. `failures` are given where no row was usable and nothing is published yet."""
    nothing = {"assigned": 0, "quarantined": 0, "loss": 0.0, "failures": "[]", "error": "", "example": "", "notes": ""}
    return {"index": task.shard, **nothing, **told}


class ShardActor:
    """One worker of the pool. Called from several threads at once, each with a shard; one engine computes for all."""

    #: What of a job decides a search.
    kind: ClassVar[type[SearchConfig]] = AssignConfig

    def __init__(
        self,
        job: Any,
        sealed: dict[str, Any],
        pairs: PairSet,
        models: Sequence[ModelFolder],
        gpus: float,
        decoder_cpus: float,
        attempts: Any = None,
    ) -> None:
        """`attempts` counts how often shards were begun; without it the actor works outside Ray."""
        self.job, self.sealed, self.models = job, sealed, models
        self.ledger = self.ledger_of(job, sealed)
        self.pairs, self.attempts = pairs, attempts
        self.turns, self.notes = Turns(), list[str]()
        self.error: str | None = None
        try:
            torch.set_num_threads(max(1, int(job.cpus_per_worker)))
            self.earlier = Assignments(job.warm_start) if job.warm_start else None
            self.prepare("cuda" if gpus else "cpu", decoder_cpus)
            if attempts is not None:
                self.metrics = self._metrics()
        except Exception as error:  # raised from here, it would restart the actor for ever
            self.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {innermost(error)}"

    @staticmethod
    def ledger_of(job: Any, sealed: dict[str, Any]) -> Ledger:
        """Where this kind of worker publishes."""
        return Ledger(open_store(job.out), sealed)

    def prepare(self, device: str, decoder_cpus: float) -> None:
        """Load what is held from the first task to the last. Raises UserError."""
        job, sealed = self.job, self.sealed
        generator = self.load(job, device)
        config = self.config_of(job)
        objective = self.objective_of(job, generator)
        slots = job.slots or min(slots_that_fit(generator, config, objective), sealed["rows_per_shard"])
        if job.compile:  # not before the slots are counted: each batch size that is tried would be compiled
            compiled: Any = torch.compile(generator.trainable, dynamic=False)
            generator.trainable = compiled
        self.engine = Engine(generator, config, slots, objective, on_event=self.notes.append)
        records = RecordConfig(job.seed, job.store, sealed["model_fingerprint"], fingerprint(sealed["config"]))
        rows = self.rows_of(job, objective, PromptCache(generator), decoder_cpus)
        self.assigner = ShardAssigner(self.engine, rows, records)
        if self.attempts is not None:
            threading.Thread(target=self.assigner.serve, daemon=True).start()

    def load(self, job: Any, device: str) -> OneStepGenerator:
        """The generator of this worker."""
        (model,) = self.models
        return load_generator(model, device, job.dtype, gradient_checkpointing=job.gradient_checkpointing)

    @classmethod
    def config_of(cls, job: Any) -> SearchConfig:
        """The part of a job that decides its searches."""
        return cls.kind(**{name: getattr(job, name) for name in cls.kind.model_fields})

    @staticmethod
    def objective_of(job: Any, generator: OneStepGenerator) -> Objective:
        """What this kind of worker searches for."""
        return Reconstruction(generator, job)

    def rows_of(self, job: Any, objective: Any, prompts: PromptCache, decoder_cpus: float) -> Rows:
        """The rows of this kind of worker, with the very objective."""
        return PairRows(objective, prompts, self.pairs, job.store_latents, self._decode(decoder_cpus))

    def _decode(self, decoder_cpus: float) -> Decode:
        if self.attempts is None:
            return decode_in_threads
        from rayjobs.pool.decoder import RayDecoder

        return RayDecoder(self.pairs, decoder_cpus)

    @staticmethod
    def _metrics() -> Any:
        from rayjobs.pool.prometheus import WorkerMetrics

        return WorkerMetrics()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        receipts = [self.work(*unpacked(str(text))) for text in batch["task"]]
        return {name: [r[name] for r in receipts] for name in receipts[0]}

    def work(self, task: Task, shard: Shard) -> dict[str, Any]:
        if self.error is not None:
            return receipt(task, error=self.error)
        try:
            # The first of two attempts may have published and died before it could say so.
            if (about := self.ledger.committed(task)) is not None:
                quarantined = len(about["failures"])
                return receipt(task, assigned=about["rows"], quarantined=quarantined, loss=about["loss_sum"])
            return self._publish(task, self._assign(task, shard))
        except (UserError, RunFailed) as error:
            return receipt(task, error=str(error))

    def _assign(self, task: Task, shard: Shard) -> ShardResult:
        starts = None
        if self.earlier is not None:
            starts = self.earlier.found(shard.index, self.engine.generator.latent_shape)
        if self.attempts is None:
            return self.search(shard, starts, task.only)
        import ray

        suspect = ray.get(self.attempts.so_far.remote(shard.index)) > 0
        with self.turns.take(alone=suspect):
            if ray.get(self.attempts.begin.remote(shard.index)) >= DEATHS:
                return self._given_up(task, shard)
            result = self.search(shard, starts, task.only)
        self.metrics.shard(result, self.engine, self.assigner)
        return result

    def search(self, shard: Shard, starts: Mapping[str, Start] | None, only: frozenset[int] | None) -> ShardResult:
        """The records and failures of a shard; called by several threads."""
        if self.attempts is None:
            return self.assigner.assign(shard, starts, only)
        return self.assigner.submit(shard, starts, only).result()

    def _given_up(self, task: Task, shard: Shard) -> ShardResult:
        """Every row of a shard as a failure: unusable rows by their own reason, the others because the worker died."""
        result = ShardResult()
        for pair in usable_rows(self.pairs, shard, result.failures, task.only):
            told = f"row {pair.row}: its worker died {DEATHS} times while the shard of this row was under way"
            result.failures.append(Failure(pair.sample_id, pair.row, "worker-died", told))
        return result

    def _publish(self, task: Task, result: ShardResult) -> dict[str, Any]:
        notes = "; ".join(self.notes)
        self.notes.clear()
        if not result.rows:
            # Of a whole shard the driver decides whether that is the data's fault or the run's; of rows that failed
            # before there is nothing new to say.
            failures = json.dumps([vars(failure) for failure in result.failures])
            return receipt(task, failures=failures, notes=notes)
        began = time.perf_counter()
        self.ledger.commit(task, result)
        if self.attempts is not None:
            self.metrics.published(time.perf_counter() - began)
        return receipt(
            task,
            assigned=len(result.rows),
            quarantined=len(result.failures),
            loss=sum(row["loss"] for row in result.rows),
            example=result.failures[0].message if result.failures else "",
            notes=notes,
        )
