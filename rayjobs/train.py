"""The M-step job: `ortho train` fine-tunes on assigned noise (or, for comparison, on random noise) with Ray Train."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ortho_core.assignments import CACHE_BYTES, FORMAT, Assignments
from ortho_core.errors import UserError
from ortho_core.generators.base import (
    base_folder_of,
    image_size_of,
    is_class_conditional,
    latent_shape_of,
    model_fingerprint,
    target_shape_of,
)
from ortho_core.lora import Lora, lora_of
from ortho_core.m_step import MStepConfig
from ortho_core.matched_data import MatchedData, read_prompts
from ortho_core.order import Order
from ortho_core.pairs import PairFields, PairSet
from ortho_core.storage import Location, absolute, open_store
from ortho_core.transform import block_dimension
from rayjobs.ledger import claim, fingerprint
from rayjobs.plots import plot_training
from rayjobs.progress import say
from rayjobs.session import WorkerResources, ray_session
from rayjobs.trackers import TrackerSettings
from rayjobs.trackers import check as check_trackers
from rayjobs.train_run import SUMMARY, conclude, forget, run_workers
from rayjobs.train_worker import HISTORY, train_worker


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class TrainSettings(MStepConfig, TrackerSettings, WorkerResources):
    """How the M-step runs; `em` has these under `train.`."""

    noise: Literal["matched", "random", "base"] = Field(
        "matched",
        description="matched: the assigned noise; random: direct SFT; base: what the search began from, to distil the "
        "images that `ortho reward` found",
    )
    center_noise: bool = Field(
        False,
        description="take the mean of all matched noise off each, so that as a whole it is centred as N(0, I) is",
    )
    epochs: int = Field(5, ge=1, description="passes over the assignments")
    batch_size: int = Field(16, ge=1, description="rows of one update, over all workers and micro-batches")
    preserve_batch_size: int | None = Field(
        None, ge=1, description="rows of the preserve terms in one update (none: as many as batch_size)"
    )
    preserve_prompts: Path | None = Field(
        None, description="prompts of the preserve terms, one a line or .jsonl with `prompt` (none: those trained on)"
    )
    lora_rank: int = Field(0, ge=0, description="train an adapter of this rank instead of all weights (0: all weights)")
    lora_alpha: float | None = Field(None, gt=0, description="scale of the adapter, alpha / rank (none: alpha = rank)")
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        Lora.targets, description="endings of the names of the layers that get an adapter"
    )
    lora_merge: bool = Field(False, description="save whole models with the adapter merged in, not adapters")
    gradient_checkpointing: bool = Field(False, description="compute activations twice and keep fewer of them")
    compile: bool = Field(False, description="torch.compile the network")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="fsdp: shard weights, gradients and optimiser over the workers, for what does not fit one GPU",
    )
    num_workers: int = Field(1, ge=0, description="training processes (0: train in this process, for a debugger)")
    readers_per_worker: int = Field(1, ge=1, description="processes that read and decode ahead of each worker")
    shuffle_window: int = Field(65_536, ge=1, description="rows among which the order is random, memory permitting")
    validation: Location | None = Field(
        None, description="assignments of held-out pairs, made by `ortho assign` with the starting model"
    )
    validation_rows: int = Field(64, ge=1, description="rows of them that are looked at, from the first")
    validate_every: int = Field(0, ge=0, description="updates between validations (0: at the end of each epoch)")
    save_every: int = Field(
        1, ge=0, description="keep checkpoint-epoch-NNN every so many epochs (0: best and final only)"
    )
    checkpoint_every: int = Field(0, ge=0, description="updates between resumable states (0: at the end of each epoch)")
    keep_states: int = Field(1, ge=1, description="resumable states that are kept")
    log_every: int = Field(5, ge=1, description="updates between entries of the log")
    max_skipped_updates: int = Field(
        10, ge=0, description="updates left out because their gradient was not finite, before the run gives up"
    )
    max_restarts: int = Field(3, ge=0, description="how often dead workers are started again")
    allow_stale: bool = Field(False, description="train on noise that was matched to another model than --model")
    seed: int = Field(0, ge=0, description="decides the order of rows and every random noise")

    @property
    def alpha(self) -> float:
        return self.lora_alpha or float(self.lora_rank)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.lora_targets)

    @property
    def world(self) -> int:
        return max(1, self.num_workers)

    @property
    def preserve_rows(self) -> int:
        """Rows of the preserve terms in one update, over all workers."""
        return (self.preserve_batch_size or self.batch_size) if self.preserves else 0

    @property
    def rows_at_once(self) -> int:
        """Rows of the reconstruction term that one worker computes with at once."""
        return self.batch_size // (self.world * self.gradient_accumulation_steps)

    def check_shares(self, rows: int, where: str, group: str = "") -> None:
        """Raises UserError where a batch is too large for the data or does not divide among workers and micro-batches."""
        if self.batch_size > rows:
            raise UserError(f"--{group}batch-size: {self.batch_size} is more than the {rows} {where}")
        parts = self.world * self.gradient_accumulation_steps
        among = f"{self.world} workers" + (
            f" × {self.gradient_accumulation_steps} micro-batches" if self.gradient_accumulation_steps > 1 else ""
        )
        for name, size in (("batch-size", self.batch_size), ("preserve-batch-size", self.preserve_rows)):
            if size % parts:
                raise UserError(f"--{group}{name}: {size} does not divide among {among}")


class TrainJob(TrainSettings):
    """Fine-tune a model on assigned noise (the M-step)."""

    assignments: Location = Field(description="folder or URL that `ortho assign` wrote to")
    model: Path = Field(description="model folder to start from; one with a LoRA adapter goes on with that adapter")
    out: Path = Field(description="folder for checkpoints and curves; the same command again resumes")
    pairs: Location | None = Field(
        None, description="where the images are, if not where the assignments were made from"
    )
    preserve_model: Path | None = Field(
        None, description="model f_0 that the preserve terms hold to (default: --model)"
    )

    @property
    def title(self) -> str:
        """What people call the run: in EM every M-step's folder is called `train`."""
        return "/".join(self.out.parts[-2:])


#: Options that decide how fast a run goes or what it tells, not what comes out of it.
INDIFFERENT = {
    *WorkerResources.model_fields,
    *TrackerSettings.model_fields,
    *("num_workers", "readers_per_worker", "parallel", "compile", "gradient_checkpointing"),
    *("gradient_accumulation_steps", "checkpoint_every", "keep_states", "log_every", "max_restarts", "allow_stale"),
    "max_skipped_updates",
}


def make_plan(job: TrainJob) -> tuple[dict[str, Any], MatchedData]:
    """What the run will do, and on what. Raises UserError for whatever can be found wrong beforehand."""
    check_trackers(job)
    assignments, shape = Assignments(job.assignments), latent_shape_of(job.model)
    model = model_fingerprint(job.model)
    check_assignments(assignments, shape)
    made_with = assignments.plan["model_fingerprint"]
    if job.noise == "matched" and made_with != model and not job.allow_stale:
        raise UserError(
            f"the assignments in {job.assignments} were made with another model (fingerprint {made_with}) than --model "
            f"{job.model} ({model}): assign again with this model, or say --allow-stale"
        )
    if job.center_noise and job.noise != "matched":
        raise UserError(
            f"--center-noise is of matched noise; --noise {job.noise} has a mean of zero as it is: leave one out"
        )
    if job.noise == "matched" and assignments.of_rewards:
        raise UserError(
            f"{job.assignments} holds what `ortho reward` found: the model makes these images at that noise already; "
            "--noise base distils them to the noise that the search began from, --noise random to any"
        )
    if job.preserve_model is not None and latent_shape_of(job.preserve_model) != shape:
        raise UserError(f"--preserve-model {job.preserve_model} has another latent shape than --model {job.model}")
    job.check_shares(len(assignments), "assigned rows")
    check_lora(job, job.model)
    target_shape = target_shape_of(job.model)
    # As many rows as half of what a reader keeps in memory holds, so that it reads no part twice.
    window = max(1, min(job.shuffle_window, CACHE_BYTES // 2 // assignments.row_bytes(shape, target_shape)))
    data = MatchedData(
        assignments,
        Order(assignments.starts, job.batch_size, job.seed, window),
        shape,
        image_size_of(job.model),
        job.noise,
        job.seed,
        needs_images=bool(job.pixel_l1_weight),
        preserve_rows=job.preserve_rows,
        preserve_prompts=read_prompts(job.preserve_prompts) if job.preserve_prompts and job.preserves else (),
        target_shape=target_shape,
    )
    if data.needs_images and assignments.of_rewards:
        raise UserError(
            f"--pixel-l1-weight: {job.assignments} holds what `ortho reward` found, latents without images; accepted: 0"
        )
    if data.needs_images or not assignments.has_target_latents:
        data = replace(data, pairs=images_of(job.assignments, job.pairs))
    settings = {k: v for k, v in job.model_dump(mode="json").items() if k in TrainSettings.model_fields}
    own = {"preserve_prompts": fingerprint(data.preserve_prompts), "validation": validation_of(job, shape)}
    plan = {
        "format": FORMAT,
        "assignments": assignments.plan["run_fingerprint"],
        "pairs_fingerprint": assignments.plan["pairs_fingerprint"],
        "model_fingerprint": model,
        "preserve_fingerprint": model_fingerprint(job.preserve_model) if job.preserve_model else model,
        "config": {k: v for k, v in settings.items() if k not in INDIFFERENT} | own,
        "rows": len(assignments),
        "updates": job.epochs * data.order.updates,
    }
    return {**plan, "run_fingerprint": fingerprint(plan)}, data


def check_assignments(assignments: Assignments, shape: tuple[int, int, int]) -> None:
    """Raises UserError if the assignments are of another latent shape, or their first noise is not what was recorded."""
    block_dimension(shape, assignments.patch_size)
    assignments.noise([0], shape)


def check_lora(job: TrainSettings, model: Path) -> None:
    """Raises UserError if the model takes no adapter, or its own is not of the shape that was asked for."""
    if job.lora_rank and is_class_conditional(model):
        raise UserError(
            f"--lora-rank: {model} is class-conditional, which has no adapters: train all weights (--lora-rank 0)"
        )
    there = lora_of(model)
    if there is None:
        return
    if not job.lora_rank:
        raise UserError(
            f"--model {model} is a LoRA adapter: go on with it (--lora-rank {there.rank}), or merge it first"
        )
    asked = Lora(job.lora_rank, job.alpha, tuple(sorted(job.targets)))
    if asked != replace(there, targets=tuple(sorted(there.targets))):
        raise UserError(f"--model {model} has an adapter of {there}, which is not the {asked} that was asked for")


def validation_of(job: TrainJob, shape: tuple[int, int, int]) -> str | None:
    """The run that assigned the held-out rows. Raises UserError if they cannot be validated on."""
    if job.validation is None:
        return None
    held = Assignments(job.validation)
    check_assignments(held, shape)
    if not held.has_target_latents:
        raise UserError(f"--validation: the assignments in {job.validation} were made without --store-latents")
    if min(job.validation_rows, len(held)) < job.world:
        raise UserError(f"--validation: fewer rows in {job.validation} than the {job.world} workers")
    return str(held.plan["run_fingerprint"])


def images_of(assignments: str, pairs: str | None) -> PairSet:
    """The pair set that the assignments were made from, as their summary says, or the same at another place `pairs`."""
    try:
        config = json.loads(open_store(assignments).read("summary.json"))["config"]
        fields = PairFields(**{name: config[name] for name in PairFields.model_fields})
        return PairSet(pairs or config["pairs"], fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{assignments}/summary.json does not say where the images are: {error!r}") from error


def plan(job: TrainJob) -> dict[str, Any]:
    """What a dry run prints."""
    content, _ = make_plan(job)
    kept = (2 + (job.epochs // job.save_every if job.save_every else 0)) * (2 if job.ema else 1)
    if not job.lora_rank or job.lora_merge:  # adapters are small beside these
        size = sum(f.stat().st_size for f in base_folder_of(job.model).rglob("*") if f.is_file())
        content["bytes_of_checkpoints_about"] = size * kept
    return {**content, "model_folders": kept, "rows_at_once_on_each_worker": job.rows_at_once, "out": str(job.out)}


def run(job: TrainJob, callbacks: Sequence[Any] = ()) -> int:
    """Train, or go on training; `callbacks` are Ray Train's. Returns 0. Raises UserError or RunFailed."""
    sealed, data = make_plan(job)
    paths = {k: getattr(job, k) for k in ("model", "out", "preserve_model", "preserve_prompts")}
    # As they are on this machine: workers have another current directory, and compare paths.
    job = job.model_copy(update={k: v.resolve() for k, v in paths.items() if v is not None})
    job = job.model_copy(
        update={
            "assignments": absolute(job.assignments),
            "pairs": data.pairs.location if data.pairs is not None else None,
            "validation": absolute(job.validation) if job.validation else None,
        }
    )
    claim(job.out, sealed, "train")
    if (job.out / SUMMARY).is_file():
        forget(job.out)
        say(f"train: {job.out} is complete")
        return 0
    if job.center_noise:
        mean = data.assignments.mean_noise(data.latent_shape)
        data = replace(data, center=mean.numpy())
        say(f"train: the mean of the matched noise, {float(mean.square().mean().sqrt()):.3f} RMS, is taken off each")
    started = time.monotonic()
    with ray_session():
        result = fit(job, sealed, data, callbacks)
    for failure in result["tracker_failures"]:
        say(f"train: {failure}")
    plot_training(job.out / HISTORY, job.out / "train_history.png")
    conclude(job, sealed, result, time.monotonic() - started)
    return 0


def fit(job: TrainJob, sealed: dict[str, Any], data: MatchedData, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Run the workers of the M-step."""
    config = {"job": job.model_dump(mode="json"), "sealed": sealed, "data": data}
    title = f"train on {job.noise} noise"
    return run_workers(job, train_worker, config, title, sealed["updates"], callbacks)


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
