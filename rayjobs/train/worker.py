"""The training worker of `ortho train`: updates of the M-step, validation, model folders, skipped updates."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
import ray.train.torch
import torch
from torch import nn

from ortho_core.device import to_host
from ortho_core.errors import RunFailed
from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.compiled import allow_graphs
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, has_lora, keep_as_teacher
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.prompt_store import PromptStore
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.mstep.data import MatchedData, to_batch
from ortho_core.mstep.fsdp import shard_weights
from ortho_core.mstep.kept_noise import LatestNoise, refreshed
from ortho_core.mstep.loss import TERMS
from ortho_core.mstep.matching import MATCH_TERMS, OnlineMatching, match_search
from ortho_core.mstep.share import Share
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher, Teacher
from ortho_core.mstep.unassigned import UnassignedRows
from ortho_core.mstep.update import MStep, Outcome, autocast, half_dtype
from ortho_core.mstep.validation import PICTURE, PICTURED_ROWS, Validation, figures, validated_rows
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import padded
from ortho_core.records.assignments import Assignments
from ortho_core.storage.lease import Ticket
from rayjobs.train.checkpoints import CheckpointFolders
from rayjobs.train.config import TrainJob
from rayjobs.train.feed import ahead, feed, read_here
from rayjobs.train.memory import Updates, checkpoints, out_of_memory
from rayjobs.train.models import TrainModels
from rayjobs.train.plan import TrainPlan
from rayjobs.train.precision import COMPUTES_IN, frozen_in, halved
from rayjobs.training.loop import TrainLoop, Update, work

#: Updates without a new prompt after which the text encoders leave the GPU.
QUIET_UPDATES = 50


class Skipped(TypedDict):
    """An update whose gradient was not finite, with the rows that may be the cause."""

    update: int
    rows: list[str]


def train_worker(config: dict[str, Any]) -> dict[str, object]:
    """Runs on every worker; rank 0 writes. Returns the numbers of the summary, or `error` if a retry cannot help."""
    job = TrainJob.model_validate(config["job"])

    def run(rank: int, world: int) -> dict[str, object]:
        try:
            plan, data, models = (config[name] for name in ("plan", "data", "models"))
            return Training(job, plan, data, models, rank, world, config["ticket"], config["embeddings"]).run()
        except torch.OutOfMemoryError as error:
            raise RunFailed(out_of_memory(job, error)) from error

    return work(job, job.out, run)


class Training(TrainLoop[Share]):
    """Fine-tunes on assigned noise. `checkpoint-best` has the lowest held-out error, or without held-out rows the lowest loss."""

    def __init__(
        self,
        job: TrainJob,
        plan: TrainPlan,
        data: MatchedData,
        models: TrainModels,
        rank: int,
        world: int,
        ticket: Ticket | None = None,
        embeddings: str | None = None,
    ) -> None:
        """`embeddings` is the folder of --prompt-embeddings with its secrets, which the job has lost on its way."""
        epoch = data.order.updates
        terms = (*TERMS, *MATCH_TERMS) if job.noise == "online" else TERMS
        super().__init__(job, job.out, job.title, plan, terms, epoch, job.epochs * epoch, rank, world, ticket)
        self.job, self.data, self.models = job, data, models
        #: The half-precision dtype that the network computes in; None: float32.
        self.half = half_dtype(self.device, job, models.model.half)
        #: Whether gradient checkpointing is used.
        self.checkpoints = checkpoints(Updates.of(job, models, data), self.device)
        # Started before the model is loaded: both take seconds, and they run in different processes.
        self.shares: Iterator[Share] = iter(())
        if self.update < self.updates:
            todo = (data, self.update, self.updates)
            fed = (
                feed(*todo, rank=rank, world=world, readers=job.readers_per_worker)
                if job.num_workers
                else read_here(*todo)
            )
            self.shares = ahead(fed)
        self.generator = self._load()
        network = self.generator.trainable
        self.teacher = self._teacher(network) if data.preserve_rows else None
        store = None
        if embeddings is not None:
            store = PromptStore.of(embeddings, models.model, frozen_in(job, models.model, self.device), self.device)
        self.prompts = PromptCache(self.generator, store)
        self.validations_on = self._validation(plan.validation)
        self.step = MStep(self.generator, job, self.updates, teacher=self.teacher, wrap=self._wrap)
        self.matching = self._matching() if job.noise == "online" else None
        rows = (data.order.rows, data.latent_shape)
        self.latest = LatestNoise(*rows) if job.keeps_noise and job.match_keep == "latest" else None
        self.folders = CheckpointFolders(job, plan, models.model, self.step, rank, data.framing)
        #: One entry per validation.
        self.validations: list[dict[str, float]] = []
        self.skipped: list[Skipped] = []
        #: Reasons of rows that could not be used and were replaced by others; gathered from all workers for each state.
        self.unusable: dict[str, None] = {}

    @property
    def _are_parts_own(self) -> bool:
        """Whether each worker sorts its own rows by size, so that only the numbers of real rows are equal."""
        return isinstance(self.data.source, UnassignedRows)

    def _load(self) -> OneStepGenerator:
        job = self.job
        if job.compile:
            allow_graphs(len(self.data.framing.sizes) if self.data.framing is not None else 1)
        generator = load_generator(
            self.models.model,
            self.device,
            frozen_in(job, self.models.model, self.device),
            gradient_checkpointing=self.checkpoints,
            keep_adapter=bool(job.lora_rank),
            quantize=job.quantize,
        )
        if (adapter := job.adapter(self.models.model)) is None:
            generator.trainable.requires_grad_(True)
        elif not has_lora(generator.trainable):
            add_lora(generator.trainable, adapter, job.seed)
        return generator

    def _teacher(self, network: nn.Module) -> Teacher:
        """f_0, without a second copy of the weights if it differs from the network only by an adapter."""
        model, held = self.models.model, self.models.held
        start, base = (held.fingerprint == other.fingerprint for other in (model, model.base))
        if self.job.lora_rank and (start or base):
            if not base:
                keep_as_teacher(network)
            return AdapterTeacher(network)
        if start:
            return FrozenTeacher.copy_of(network)
        teacher = load_generator(
            held, self.generator.device, frozen_in(self.job, self.models.model, self.device), quantize=self.job.quantize
        )
        return FrozenTeacher(teacher.trainable)

    def _matching(self) -> OnlineMatching:
        job = self.job
        search = match_search(job, job, self.data.noise_settings)
        requested = self.half if job.match_dtype == "auto" else {v: k for k, v in COMPUTES_IN.items()}[job.match_dtype]
        half = self.half if halved(job, self.device) else requested
        return OnlineMatching(self.generator, self.step.parameters, search, job.gradient_accumulation_steps, half=half)

    def _wrap(self, network: nn.Module) -> nn.Module:
        job = self.job
        if job.compile:
            network.compile(dynamic=False)
        if self.world == 1:
            return network
        if job.parallel == "fsdp":
            if isinstance(self.teacher, FrozenTeacher):
                shard_weights(self.teacher.network, self.generator.device, self.world)
            return shard_weights(network, self.generator.device, self.world)
        wrapped: nn.Module = ray.train.torch.prepare_model(
            network, move_to_device=False, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
        )
        return wrapped

    def _validation(self, planned: str | None) -> list[Validation]:
        """The held-out rows of each size of images; empty without held-out rows."""
        job = self.job
        if job.validation is None:
            return []
        held = Assignments(job.validation).planned_as("--validation", planned)
        framing = held.plan.framing(own_size(self.models.model))
        rows = validated_rows(held, min(job.validation_rows, len(held)), self.rank, self.world, framing.is_one_size)
        # As in later measurements; otherwise rounding alone would give a drift at the start.
        with autocast(self.generator, job):
            return [
                Validation.of(
                    held,
                    mine,
                    self.generator,
                    self.teacher,
                    self.prompts,
                    job.rows_at_once,
                    self.data.center,
                    framing if framing.tells_frames or not framing.is_one_size else None,
                    counted,
                )
                for mine, counted in rows
            ]

    def batches(self) -> Iterator[Share]:
        return self.shares

    def before_first_update(self) -> None:
        # With embeddings in a folder, the text encoders are hardly needed.
        self._rest(text=self.prompts.has_store, autoencoder=True)
        if self.update == 0 and self.validations_on:
            self._validate()

    def one_update(self, batch: Share) -> Update:
        # For networks with dropout: like the rest, it depends only on the seed and the position.
        torch.manual_seed(noise_seed(self.job.seed, "update", self.update, self.rank))
        ready = [
            to_batch(self._refreshed(part), self.generator, self.prompts, self.data.needs_images)
            for part in batch.parts
        ]
        self.unusable |= {reason: None for part in batch.parts for reason in part.unusable}
        matched: list[torch.Tensor] = []
        kept: torch.Tensor | None = None
        if self.matching is not None:
            steps = self.job.match_steps_at(self.update, self.updates)
            if self.job.match_measures_at(self.update):
                self.matching.forget()
            found = [self.matching(part, steps) for part in ready]
            ready, totals = [part for part, _ in found], [total for _, total in found]
            # Copied to the host meanwhile; complete when the update has read its figures.
            matched.append(to_host(torch.stack(totals).sum(0)))
            if self.latest is not None:
                noise = torch.cat([self.latest.flattened(part.noise) for part in ready])
                kept = to_host(self.all_rows(noise[batch.real_rows] if self._are_parts_own else noise))
        outcome = self.step.update(ready[0] if ready[0].weights is None else ready)
        if self.latest is not None:
            assert kept is not None
            rows = [row for part in batch.parts for row in part.rows]
            rows = [rows[k] for k in batch.real_rows] if self._are_parts_own else rows
            self.latest.remember([row for of_worker in self.from_all(rows) for row in of_worker], kept)
        if not outcome.applied:
            self._skip(batch, outcome)
        terms = torch.cat([torch.tensor(outcome.terms), *matched])
        return Update(terms, outcome.applied, {"grad_norm": outcome.grad_norm, "lr": self.step.lr})

    def _refreshed(self, share: Share) -> Share:
        """The share with the noise that the search starts from."""
        kept = share.kept
        if self.latest is not None:
            assert kept is not None
            kept = self.latest.recall(share.rows, kept)
        if kept is None:
            return share
        return replace(share, noise=refreshed(kept, share.noise, self.job.match_refresh))

    def after_update(self, epoch_ends: bool) -> None:
        """Validate and write the model folders that are due. This comes before the state, so a resumed run need not repeat it."""
        job, last = self.job, self.update == self.updates
        if self.prompts.quiet_calls >= QUIET_UPDATES and self.update % QUIET_UPDATES == 0:
            self._rest(text=True)
        names = self._epoch_folders() if epoch_ends else []
        validate = self.update % job.validate_every == 0 if job.validate_every else epoch_ends
        if self.validations_on and (validate or last):
            names += self._validate()
        if last:
            names.append("final")
        if names:
            self.folders.save(names, self.update, self._card_figures())

    def finish(self) -> dict[str, object]:
        job, losses = self.job, [epoch["loss"] for epoch in self.epochs]
        best = min(range(len(losses)), key=lambda i: losses[i])
        speed = self.updates_per_second
        return {
            "best_epoch": best + 1,
            "best_loss": losses[best] if math.isfinite(losses[best]) else None,
            "final_loss": losses[-1] if math.isfinite(losses[-1]) else None,
            "validations": self.validations,
            "skipped_updates": self.skipped,
            "unusable_rows": len(self.unusable),
            "unusable": list(self.unusable)[:20],
            "match_evaluations": job.match_evaluations(self.updates, job.batch_size)
            if self.matching is not None
            else 0,
            "gradient_checkpointing": self.checkpoints,
            "loaded_fingerprint": self.generator.loaded_fingerprint,
            "images_per_second": job.batch_size * speed if speed is not None else None,
        }

    def _skip(self, share: Share, outcome: Outcome) -> None:
        """Count an update that was not applied. Raises RunFailed with the rows that may be the cause, if there were too many."""
        called = [name for part in share.parts for name in part.row_names]
        mine = [n for n, v in zip(called, outcome.rows.tolist(), strict=True) if not math.isfinite(v)]
        rows = sorted({name for names in self.from_all(mine) for name in names})
        number = self.update + 1
        self.skipped.append({"update": number, "rows": rows[:20]})
        if len(self.skipped) > self.job.max_skipped_updates:
            named = sorted({name for each in self.skipped for name in each["rows"]})
            rows_named = f"rows {', '.join(named[:8])}{', ...' if len(named) > 8 else ''}" if named else "no single row"
            raise RunFailed(
                f"the gradient was not finite in {len(self.skipped)} updates, the last of them {number} of "
                f"{self.updates} (--max-skipped-updates {self.job.max_skipped_updates}); not finite: {rows_named}; if these "
                "are many rows, a lower --lr usually helps"
            )

    def _epoch_folders(self) -> list[str]:
        """The folders that are due at the end of an epoch. Without validation, the epoch with the lowest loss is the best."""
        number, losses = len(self.epochs), [e["loss"] for e in self.epochs]
        names = [f"epoch-{number:03d}"] if self.job.save_every and number % self.job.save_every == 0 else []
        return [*names, "best"] if not self.validations_on and losses[-1] == min(losses) else names

    @torch.no_grad()
    def _validate(self) -> list[str]:
        """Measure on the held-out rows; returns `best` if the error is the lowest so far."""
        sharded = self.job.parallel == "fsdp"  # a sharded network computes only on all workers together
        network = self.generator.trainable.eval()
        values, samples = self._measured("")
        if self.step.ema is not None:
            with self.step.averaged():
                values |= self._measured("ema_")[0]
        self.validations.append({"update": self.update, **values})
        self.write(values, "validation")
        if self.rank == 0 or sharded:
            each = -(-PICTURED_ROWS // len(self.validations_on))
            with self.step.autocast():
                groups = [
                    one.picture(self.generator, self.prompts, some, each)
                    for one, some in zip(self.validations_on, samples, strict=True)
                ]
            rows = [
                padded([image for part in row for image in part][:PICTURED_ROWS]) for row in zip(*groups, strict=True)
            ]
            self.write_pictures(
                dict(zip(PICTURE, rows, strict=True)), f"update-{self.update:06d}", "validation/samples"
            )
        network.train()
        self._rest(autoencoder=True)
        seen = [v["latent"] for v in self.validations if v["update"] and math.isfinite(v["latent"])]
        return ["best"] if self.update and values["latent"] == min(seen, default=math.inf) else []

    def _measured(self, prefix: str) -> tuple[dict[str, float], list[torch.Tensor]]:
        with self.step.autocast():
            measured = [one.measure(self.generator, self.prompts) for one in self.validations_on]
        table = np.concatenate([each for each, _ in measured])
        found = {prefix + k: v for k, v in figures(self.from_all(table)).items()}
        return found, [samples for _, samples in measured]

    def _card_figures(self) -> dict[str, float]:
        """The latest training and validation figures, for a model card."""
        train = self.epochs[-1] if self.epochs else {}
        validation = self.validations[-1] if self.validations else {}
        return {f"train {k}": v for k, v in train.items()} | {f"validation {k}": v for k, v in validation.items()}

    def _rest(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """Move frozen parts that the next updates do not need off the GPU."""
        needed = self.data.needs_images or self.data.encodes
        self.generator.park(text=text, autoencoder=autoencoder and not needed and not self.job.preserve_pixel_weight)

    def state_dict(self) -> dict[str, object]:
        if isinstance(self.data.source, UnassignedRows):
            self.unusable = {reason: None for each in self.from_all(list(self.unusable)) for reason in each}
        state = {
            "validations": self.validations,
            "skipped": self.skipped,
            "unusable": list(self.unusable),
            **self.step.state_dict(),
        }
        parts = {"matching": self.matching, "latest": self.latest}
        return state | {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.validations, self.skipped = state["validations"], state["skipped"]
        self.unusable = dict.fromkeys(state["unusable"])
        self.step.load_state_dict(state)
        if self.matching is not None:
            self.matching.load_state_dict(state["matching"])
        if self.latest is not None:
            self.latest.load_state_dict(state["latest"])

    def validated(self) -> dict[str, float] | None:
        fresh = self.validations and self.validations[-1]["update"] == self.update
        return self.validations[-1] if fresh else None
