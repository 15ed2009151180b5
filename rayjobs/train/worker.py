"""What each Ray Train worker does: updates in order, a log, validation, checkpoints, and what happens when one goes wrong."""

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import Lora, add_lora, has_lora, keep_as_teacher
from ortho_core.generators.model_folder import base_folder_of
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.mstep.data import MatchedData, Share, to_batch
from ortho_core.mstep.fsdp import shard
from ortho_core.mstep.loss import TERMS
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher, Teacher
from ortho_core.mstep.update import MStep, Outcome, autocast
from ortho_core.mstep.validation import PICTURE, Validation, figures
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import labelled_rows
from ortho_core.storage.folders import sweep_partial
from rayjobs.train.checkpoints import ModelFolders
from rayjobs.train.feed import ahead, feed, read_here
from rayjobs.train.run_files import HISTORY, OWN_STATE, STOPPED, saved_state, trim_history
from rayjobs.train.trackers import Trackers
from rayjobs.verb.plan import fingerprint, replace_text

#: Updates without a new prompt after which the text encoders leave the GPU.
QUIET_UPDATES = 50


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run on every worker; rank 0 writes. Returns the summary's numbers, or `error` where trying again is of no use."""
    from rayjobs.train.config import TrainJob  # the driver's module imports this one

    job = TrainJob.model_validate(config["job"])
    stopped = job.out / STOPPED
    if stopped.is_file():
        return {"error": stopped.read_text()}
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    try:
        return Training(job, config["sealed"], config["data"], context.get_world_rank(), context.get_world_size()).run()
    except (UserError, RunFailed, torch.OutOfMemoryError) as error:
        message = out_of_memory(job) if isinstance(error, torch.OutOfMemoryError) else str(error)
        if context.get_world_size() == 1:
            return {"error": message}
        replace_text(stopped, message)
        raise


def out_of_memory(job: Any) -> str:
    """What to lower."""
    remedies = [
        "raise --gradient-accumulation-steps" if job.rows_at_once > 1 else "",
        "" if job.gradient_checkpointing else "set --gradient-checkpointing",
        "" if job.mixed_precision == "bf16" else "set --mixed-precision bf16",
        "" if job.lora_rank else "train an adapter (--lora-rank 16)",
        "" if job.optimizer == "adafactor" or job.lora_rank else "set --optimizer adafactor",
        "" if job.parallel == "fsdp" else "shard over several GPUs (--parallel fsdp --num-workers N)",
    ]
    return (
        f"GPU memory ran out with {job.rows_at_once} rows at once on each worker (--batch-size {job.batch_size} over "
        f"{job.world} workers in {job.gradient_accumulation_steps} micro-batches); to need less: "
        + ", ".join(r for r in remedies if r)
    )


class Training:
    """One worker's view of a run: model, data, and where it stands."""

    def __init__(self, job: Any, sealed: dict[str, Any], data: MatchedData, rank: int, world: int) -> None:
        self.job, self.sealed, self.data, self.rank, self.world = job, sealed, data, rank, world
        self.updates = job.epochs * data.order.updates
        state = saved_state(job.out)
        self.update = self.resumed_at = state["update"] if state is not None else 0
        # Before the model is loaded: both take seconds, in different processes.
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
        self.teacher = self._teacher(network) if job.preserves else None
        self.prompts = PromptCache(self.generator)
        self.validation = self._validation()
        self.step = MStep(self.generator, self.teacher, job, self.updates, self._wrap)
        self.folders = ModelFolders(job, sealed, self.step, rank)
        #: One entry per finished epoch: the mean of each term.
        self.epochs: list[dict[str, float]] = []
        #: One entry per validation.
        self.validations: list[dict[str, float]] = []
        #: Updates whose gradient was not finite, with rows that may be at fault.
        self.skipped: list[dict[str, Any]] = []
        #: Sums of the terms over the epoch so far and over this worker's updates that were applied, and their number.
        self.sums = np.zeros(len(TERMS) + 1)
        if state is not None:
            self._resume(state)
        if rank == 0:
            trim_history(job.out / HISTORY, self.update)
        self.paused = 0.0
        self.trackers: Trackers | None = None

    def _load(self) -> OneStepGenerator:
        job = self.job
        # Sharding takes weights of one type alone.
        halved = job.lora_rank and job.mixed_precision == "bf16" and job.parallel == "ddp"
        generator = load_generator(
            job.model,
            ray.train.torch.get_device(),
            "bfloat16" if halved else "float32",
            gradient_checkpointing=job.gradient_checkpointing,
            keep_adapter=bool(job.lora_rank),
        )
        if not job.lora_rank:
            generator.trainable.requires_grad_(True)
        elif not has_lora(generator.trainable):
            add_lora(generator.trainable, Lora(job.lora_rank, job.alpha, job.targets), job.seed)
        return generator

    def _teacher(self, network: nn.Module) -> Teacher:
        """f_0 without a second copy of the weights where an adapter is all that separates it from the network."""
        job = self.job
        model, held = job.model.resolve(), (job.preserve_model or job.model).resolve()
        base = base_folder_of(model).resolve()
        if job.lora_rank and held == model != base:
            keep_as_teacher(network)
            return AdapterTeacher(network)
        if job.lora_rank and held == base:
            return AdapterTeacher(network)
        if held == model:
            return FrozenTeacher.copy_of(network)
        return FrozenTeacher(load_generator(held, self.generator.device).trainable)

    def _wrap(self, network: nn.Module) -> nn.Module:
        job = self.job
        if job.compile:
            network.compile(dynamic=False)
        if self.world == 1:
            return network
        if job.parallel == "fsdp":
            if isinstance(self.teacher, FrozenTeacher):
                shard(self.teacher.network, self.generator.device, self.world)
            return shard(network, self.generator.device, self.world)
        wrapped: nn.Module = ray.train.torch.prepare_model(
            network, move_to_device=False, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
        )
        return wrapped

    def _validation(self) -> Validation | None:
        job = self.job
        if job.validation is None:
            return None
        from ortho_core.records.assignments import Assignments

        held = Assignments(job.validation)
        each = min(job.validation_rows, len(held)) // self.world
        rows = range(self.rank * each, (self.rank + 1) * each)
        with self._autocast():  # as every measurement to come, or a drift of rounding would be there from the start
            return Validation.of(
                held, rows, self.generator, self.teacher, self.prompts, job.rows_at_once, self.data.center
            )

    def _autocast(self) -> torch.autocast:
        return autocast(self.generator.device, self.job)

    def run(self) -> dict[str, Any]:
        job = self.job
        with ExitStack() as stack:
            if self.rank == 0:
                sweep_partial(job.out)
                run_id = fingerprint([self.sealed["run_fingerprint"], str(job.out)])
                self.trackers = stack.enter_context(
                    Trackers(job, job.out, job.title, self.sealed, run_id, self.resumed_at)
                )
            speed = self._train()
        # JSON knows no infinity.
        epochs = [{k: v if math.isfinite(v) else None for k, v in epoch.items()} for epoch in self.epochs]
        best = int(np.argmin([e["loss"] for e in self.epochs]))
        return {
            "epochs": epochs,
            "best_epoch": best + 1,
            "best_loss": epochs[best]["loss"],
            "final_loss": epochs[-1]["loss"],
            "validations": self.validations,
            "skipped_updates": self.skipped,
            "tracker_failures": self.trackers.told if self.trackers is not None else [],
            "images_per_second": speed,
        }

    def _train(self) -> float | None:
        """All updates that are left. Returns rows per second, without start, validation and saving."""
        job, started, first = self.job, None, 0
        self._rest(autoencoder=True)
        if self.update == 0 and self.validation is not None:
            self._validate()
        for share in self.shares:
            self._train_on(share)
            if started is None:  # the first update pays for what every run pays once
                started, first, self.paused = time.monotonic(), self.update, 0.0
        rows = job.batch_size * (self.update - first) if started is not None else 0
        elapsed = time.monotonic() - started - self.paused if started is not None else 0.0
        return rows / elapsed if rows else None

    def _train_on(self, share: Share) -> None:
        """One update and all that is due after it."""
        job = self.job
        # Of a network with dropout; like all else, it depends on the position alone.
        torch.manual_seed(noise_seed(job.seed, "update", self.update, self.rank))
        batch = to_batch(share, self.generator, self.prompts, self.data.needs_images)
        outcome = self.step.update(batch)
        self.update += 1
        if not outcome.applied:
            self._skip(share, outcome)
        else:
            self.sums += [*outcome.terms.tolist(), 1.0]
        epoch_ends = self.update % self.data.order.updates == 0
        if self.update % job.log_every == 0 or epoch_ends:
            self._log(outcome)
        if self.prompts.quiet_calls >= QUIET_UPDATES and self.update % QUIET_UPDATES == 0:
            self._rest(text=True)
        due = self.update % job.checkpoint_every == 0 if job.checkpoint_every else epoch_ends
        validate = self.update % job.validate_every == 0 if job.validate_every else epoch_ends
        before = time.monotonic()
        names = self._end_epoch() if epoch_ends else []
        if self.validation is not None and (validate or self.update == self.updates):
            names += self._validate()
        if self.update == self.updates:
            names.append("final")
        if names:
            self.folders.save(names, self.update, self._latest())
        # After the folders: a run that goes on from here need not write them again.
        if due or self.update == self.updates:
            self._checkpoint()
        self.paused += time.monotonic() - before

    def _skip(self, share: Share, outcome: Outcome) -> None:
        """Count an update that was not applied. Raises RunFailed once there were too many, with the rows at fault."""
        mine = [n for n, v in zip(share.sample_ids, outcome.rows.tolist(), strict=True) if not math.isfinite(v)]
        rows = sorted({name for names in self._from_all(mine) for name in names})
        self.skipped.append({"update": self.update, "rows": rows[:20]})
        if len(self.skipped) > self.job.max_skipped_updates:
            named = sorted({name for each in self.skipped for name in each["rows"]})
            blame = f"rows {', '.join(named[:8])}{', ...' if len(named) > 8 else ''}" if named else "no row by itself"
            raise RunFailed(
                f"the gradient was not finite in {len(self.skipped)} updates, the last of them {self.update} of "
                f"{self.updates} (--max-skipped-updates {self.job.max_skipped_updates}); not finite: {blame}; where it is "
                "many rows, a lower --lr is the usual remedy"
            )

    def _from_all(self, mine: Any) -> list[Any]:
        """What each worker gives, on every worker."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, mine)
        return found

    def _log(self, outcome: Outcome) -> None:
        terms = outcome.terms
        if self.world > 1:
            dist.all_reduce(terms)
            terms = terms / self.world
        values = dict(zip(TERMS, terms.tolist(), strict=True))
        self._write({**values, "grad_norm": outcome.grad_norm, "lr": self.step.lr}, "train")

    def _write(self, values: Mapping[str, float], group: str) -> None:
        """To the history and the trackers."""
        if self.trackers is None:
            return
        with (self.job.out / HISTORY).open("a") as stream:
            stream.write(json.dumps({"update": self.update, "group": group, **values}) + "\n")
        self.trackers.log(self.update, {f"{group}/{name}": value for name, value in values.items()})

    def _end_epoch(self) -> list[str]:
        """Its mean losses, and the folders that are due; where there is no validation, the loss says which is best."""
        sums = sum(self._from_all(self.sums))
        self.sums = np.zeros(len(TERMS) + 1)
        # Of an epoch in which every update was left out there is nothing to tell.
        means = sums[:-1] / sums[-1] if sums[-1] else np.full(len(TERMS), np.inf)
        self.epochs.append(dict(zip(TERMS, means.tolist(), strict=True)))
        number, losses = len(self.epochs), [e["loss"] for e in self.epochs]
        names = [f"epoch-{number:03d}"] if self.job.save_every and number % self.job.save_every == 0 else []
        return [*names, "best"] if self.validation is None and losses[-1] == min(losses) else names

    @torch.no_grad()
    def _validate(self) -> list[str]:
        """Measure on the held-out rows; the lowest error so far is due as `checkpoint-best`."""
        assert self.validation is not None
        sharded = self.job.parallel == "fsdp"  # such a network computes on all workers or on none
        network = self.generator.trainable.eval()
        values, samples = self._measured("")
        if self.step.ema is not None:
            with self.step.averaged():
                values |= self._measured("ema_")[0]
        self.validations.append({"update": self.update, **values})
        self._write(values, "validation")
        if self.trackers is not None or sharded:
            with self.step.autocast():
                rows = self.validation.picture(self.generator, self.prompts, samples)
        if self.trackers is not None:
            sheet = labelled_rows(dict(zip(PICTURE, rows, strict=True)))
            (self.job.out / "samples").mkdir(exist_ok=True)
            sheet.save(self.job.out / "samples" / f"update-{self.update:06d}.png")
            self.trackers.image(self.update, "validation/samples", np.asarray(sheet))
        network.train()
        self._rest(autoencoder=True)
        seen = [v["latent"] for v in self.validations if v["update"] and math.isfinite(v["latent"])]
        return ["best"] if self.update and values["latent"] == min(seen, default=math.inf) else []

    def _measured(self, prefix: str) -> tuple[dict[str, float], torch.Tensor]:
        assert self.validation is not None
        with self.step.autocast():
            table, samples = self.validation.measure(self.generator, self.prompts)
        return {prefix + k: v for k, v in figures(self._from_all(table)).items()}, samples

    def _latest(self) -> dict[str, float]:
        """What is known of the present weights, for a card."""
        found = {f"train {k}": v for k, v in (self.epochs[-1] if self.epochs else {}).items()}
        return found | {f"validation {k}": v for k, v in (self.validations[-1] if self.validations else {}).items()}

    def _rest(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """Take frozen parts that the coming updates do not need off the GPU."""
        needed = self.data.needs_images or not self.data.assignments.has_target_latents
        self.generator.park(text=text, autoencoder=autoencoder and not needed and not self.job.preserve_pixel_weight)

    def _checkpoint(self) -> None:
        """The resumable state, through Ray Train; it is what counts as done."""
        sums = sum(self._from_all(self.sums))
        network = self.step.state_dict()
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = None
            if self.rank == 0:
                state = {
                    "update": self.update,
                    "epochs": self.epochs,
                    "validations": self.validations,
                    "skipped": self.skipped,
                    "sums": sums.tolist(),
                    **network,
                }
                if self.job.num_workers:
                    torch.save(state, Path(scratch) / "state.pt")
                    checkpoint = ray.train.Checkpoint.from_directory(scratch)
                else:  # Ray Train keeps no checkpoints of a run in its driver's process
                    fresh = self.job.out / f".{OWN_STATE}"
                    torch.save(state, fresh)
                    fresh.replace(self.job.out / OWN_STATE)
            told = {"update": self.update, "epoch": self.update / self.data.order.updates}
            if self.validations and self.validations[-1]["update"] == self.update:
                told["validation"] = self.validations[-1]
            ray.train.report(told, checkpoint=checkpoint)

    def _resume(self, state: dict[str, Any]) -> None:
        """Go to where the last checkpoint was."""
        self.epochs, self.validations, self.skipped = (state[k] for k in ("epochs", "validations", "skipped"))
        if self.rank == 0:
            self.sums = np.array(state["sums"])
        self.step.load_state_dict(state)
