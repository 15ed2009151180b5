"""The M-step job: `ortho train` fine-tunes on assigned noise (or, for comparison, on random noise) with Ray Train."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ortho_core.errors import UserError
from ortho_core.marks import decides, settings
from ortho_core.mstep.data import MatchedData, read_prompts
from ortho_core.mstep.row_order import Order
from ortho_core.noise.rotation import block_dimension
from ortho_core.pairs import PairFields, PairSet
from ortho_core.records.assignments import CACHE_BYTES, Assignments
from ortho_core.records.plan import fingerprint
from ortho_core.storage.open import open_store
from rayjobs.train.config import TrainJob, TrainModels, check_lora
from rayjobs.train.plan import TrainPlan
from rayjobs.train.worker import train_worker
from rayjobs.training import launch
from rayjobs.training.trackers import check as check_trackers
from rayjobs.verb.console import say
from rayjobs.verb.pairs import open_pairs
from rayjobs.verb.paths import located

if TYPE_CHECKING:
    from ray.train import UserCallback


def make_plan(job: TrainJob, models: TrainModels) -> tuple[TrainPlan, MatchedData]:
    """What the run will do, and on what. Raises UserError for whatever can be found wrong beforehand."""
    check_trackers(job)
    assignments, model = Assignments(job.assignments), models.model
    shape = model.latent_shape
    check_assignments(assignments, shape)
    made_with = assignments.plan.model_fingerprint
    if job.noise == "matched" and made_with != model.fingerprint and not job.allow_stale:
        raise UserError(
            f"the assignments in {job.assignments} were made with another model (fingerprint {made_with}) than --model "
            f"{job.model} ({model.fingerprint}): assign again with this model, or say --allow-stale"
        )
    if job.center_noise and job.noise != "matched" and not (job.keeps_noise and job.match_keep == "assigned"):
        raise UserError(
            f"--center-noise is of assigned noise; --noise {job.noise} has a mean of zero as it is: leave one out"
        )
    if job.noise == "online":
        job.match_search(job, assignments.plan.noise).space(shape)
    if job.noise == "matched" and assignments.of_rewards:
        raise UserError(
            f"{job.assignments} holds what `ortho reward` found: the model makes these images at that noise already; "
            "--noise base distils them to the noise that the search began from, --noise random to any"
        )
    if models.held.latent_shape != shape:
        raise UserError(f"--preserve-model {job.preserve_model} has another latent shape than --model {job.model}")
    job.check_shares(len(assignments), "assigned rows")
    check_lora(job, model)
    # As many rows as half of what a reader keeps in memory holds, so that it reads no part twice.
    window = max(1, min(job.shuffle_window, CACHE_BYTES // 2 // assignments.row_bytes(shape, model.target_shape)))
    data = MatchedData(
        assignments,
        Order(assignments.starts, job.batch_size, job.seed, window),
        shape,
        model.image_size,
        job.noise,
        job.seed,
        needs_images=bool(job.pixel_l1_weight),
        preserve_rows=job.preserve_rows,
        preserve_prompts=read_prompts(job.preserve_prompts) if job.preserve_prompts and job.preserves else (),
        target_shape=model.target_shape,
        keeps=job.keeps_noise,
    )
    if data.needs_images and assignments.of_rewards:
        raise UserError(
            f"--pixel-l1-weight: {job.assignments} holds what `ortho reward` found, latents without images; accepted: 0"
        )
    if data.needs_images or not assignments.plan.noise.store_latents:
        data = replace(data, pairs=images_of(job.assignments, job.pairs))
    plan = TrainPlan(
        assignments=assignments.plan.run_fingerprint,
        pairs_fingerprint=assignments.plan.pairs_fingerprint,
        model_fingerprint=model.fingerprint,
        preserve_fingerprint=models.held.fingerprint,
        preserve_prompts=fingerprint(data.preserve_prompts),
        validation=validation_of(job, shape),
        config=settings(job, decides),
        rows=len(assignments),
        updates=job.epochs * data.order.updates,
    )
    return plan, data


def check_assignments(assignments: Assignments, shape: tuple[int, int, int]) -> None:
    """Raises UserError if the assignments are of another latent shape, or their first noise is not what was recorded."""
    block_dimension(shape, assignments.plan.noise.patch_size)
    assignments.noise([0], shape)


def validation_of(job: TrainJob, shape: tuple[int, int, int]) -> str | None:
    """The run that assigned the held-out rows. Raises UserError if they cannot be validated on."""
    if job.validation is None:
        return None
    held = Assignments(job.validation)
    check_assignments(held, shape)
    if not held.plan.noise.store_latents:
        raise UserError(f"--validation: the assignments in {job.validation} were made without --store-latents")
    if min(job.validation_rows, len(held)) < job.world:
        raise UserError(f"--validation: fewer rows in {job.validation} than the {job.world} workers")
    return held.plan.run_fingerprint


def images_of(assignments: str, pairs: str | None) -> PairSet:
    """The pair set that the assignments were made from, as their summary says, or the same at another place `pairs`."""
    try:
        config = json.loads(open_store(assignments).read("summary.json"))["config"]
        fields = PairFields(**{name: config[name] for name in PairFields.model_fields})
        return open_pairs(pairs or config["pairs"], fields, "images", count=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{assignments}/summary.json does not say where the images are: {error!r}") from error


def describe(job: TrainJob) -> dict[str, object]:
    """What a dry run prints."""
    models = TrainModels.open(job)
    plan, _ = make_plan(job, models)
    content = plan.as_json()
    kept = (2 + (job.epochs // job.save_every if job.save_every else 0)) * (2 if job.ema else 1)
    if not job.lora_rank or job.lora_merge:  # adapters are small beside these
        content["bytes_of_checkpoints_about"] = models.model.base.weight_bytes * kept
    if job.noise == "online":
        content["evaluations_of_matching"] = job.match_evaluations(plan.updates, job.batch_size)
    return {**content, "model_folders": kept, "rows_at_once_on_each_worker": job.rows_at_once, "out": str(job.out)}


def run(job: TrainJob, callbacks: Sequence["UserCallback"] = (), models: TrainModels | None = None) -> int:
    """Train, or go on training; `callbacks` are Ray Train's, `models` the job's, where the caller has opened them.

    Returns 0. Raises UserError or RunFailed.
    """
    models = models or TrainModels.open(job)
    plan, data = make_plan(job, models)
    job = located(job).model_copy(update={"pairs": data.pairs.location if data.pairs is not None else None})
    if not launch.claimed(job.out, plan):
        return 0
    if job.center_noise:
        mean = data.assignments.mean_noise(data.latent_shape)
        data = replace(data, center=mean.numpy())
        say(f"train: the mean of the assigned noise, {float(mean.square().mean().sqrt()):.3f} RMS, is taken off each")
    title = f"train on {job.noise} noise"
    config = {"data": data, "models": models}
    launch.train(job, job.out, plan, train_worker, config, title, callbacks)
    return 0
