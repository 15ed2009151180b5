"""The M-step job: `ortho train` fine-tunes on assigned noise (or, for comparison, on random noise) with Ray Train."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ortho_core.errors import UserError
from ortho_core.estep.space import noise_space
from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.compiled import check_compiled
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import converted_from
from ortho_core.marks import conduct, decides, mark_of, settings
from ortho_core.mstep.data import MatchedData, map_at
from ortho_core.mstep.elsewhere import general_prompts, unseen_classes
from ortho_core.mstep.matching import match_search
from ortho_core.mstep.row_order import Order
from ortho_core.mstep.size_order import SizeOrder
from ortho_core.mstep.unassigned import UnassignedRows
from ortho_core.noise.rotation import block_dimension
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.prompt_file import read_prompts
from ortho_core.pairs.rows import PairFields
from ortho_core.records.assignments import CACHE_BYTES, Assignments, shape_at
from ortho_core.records.plan import fingerprint
from ortho_core.storage.lease import Lease
from ortho_core.storage.open import open_store
from ortho_core.text.parsing import json_object
from ortho_core.text.plain_text import as_given, one_line
from rayjobs.reports.framed import say_taken
from rayjobs.reports.next_steps import beside, converting, generating
from rayjobs.train import prompts
from rayjobs.train.config import TRAINING, TrainJob
from rayjobs.train.memory import Updates, memory_of
from rayjobs.train.models import TrainModels, check_lora, check_single_file, shown_sizes, trained_framing
from rayjobs.train.plan import TrainPlan
from rayjobs.train.worker import train_worker
from rayjobs.training import launch
from rayjobs.training.trackers import check as check_trackers
from rayjobs.verb.console import say
from rayjobs.verb.models import open_model
from rayjobs.verb.pairs import open_pairs
from rayjobs.verb.paths import located
from rayjobs.verb.session import ray_session

if TYPE_CHECKING:
    from ray.train import UserCallback


def make_plan(job: TrainJob, models: TrainModels) -> tuple[TrainPlan, MatchedData]:
    """The plan and the data of the run. Raises UserError for everything that can be checked before the run."""
    check_trackers(job)
    job.check_noise()
    model = models.model
    shape = model.latent_shape
    if models.held.latent_shape != shape:
        raise UserError(f"--preserve-model {job.preserve_model} has another latent shape than --model {job.model}")
    job.check_prompt_embeddings(model)
    framing = trained_framing(job, model)
    check_compiled(job.compile, len(framing.sizes))
    source = unassigned(job, model, framing) if job.assignments is None else fitting(job, model)
    if isinstance(source, UnassignedRows):
        row_bytes, pairs_fingerprint, assigned_by = source.row_bytes, source.pairs.fingerprint(), None
    else:
        row_bytes = source.row_bytes(shape, model.target_shape)
        pairs_fingerprint, assigned_by = source.plan.pairs_fingerprint, source.plan.run_fingerprint
    job.check_shares(len(source), "assigned rows" if assigned_by is not None else f"rows of {job.pairs}")
    check_lora(job, model)
    check_single_file(job, model)
    held = held_prompts(job, model, source)
    # At most as many rows as fit half of the reader's cache, so that no part is read twice.
    window = max(1, min(job.shuffle_window, CACHE_BYTES // 2 // row_bytes))
    order: Order | SizeOrder = Order(source.starts, job.batch_size, job.seed, window)
    if isinstance(source, Assignments) and not framing.is_one_size:
        order = SizeOrder(list(source.by_size(model.image_size).values()), job.batch_size, job.seed, window)
    data = MatchedData(
        source,
        order,
        shape,
        model.image_size,
        job.noise,
        job.seed,
        needs_images=bool(job.pixel_l1_weight),
        preserve_rows=0 if held == () else job.preserve_rows,
        preserve_prompts=held or (),
        preserve_differences=job.preserve_differences,
        micro_batches=job.gradient_accumulation_steps,
        target_shape=model.target_shape,
        keeps=job.keeps_noise,
        framing=framing,
        pads=job.compile,
    )
    if job.noise == "online":
        noise_space(match_search(job, job, data.noise_settings), shape)
    if job.assignments is not None and (data.needs_images or data.encodes):
        data = replace(data, pairs=images_of(job.assignments, job.pairs, job.pair_fields()))
    plan = TrainPlan(
        assignments=assigned_by,
        pairs_fingerprint=pairs_fingerprint,
        model_fingerprint=planned_fingerprint(model, *job.loaded_in),
        preserve_fingerprint=planned_fingerprint(models.held, *job.loaded_in),
        preserve_prompts=fingerprint(held),
        validation=validation_of(job, model, framing),
        config=settings(job, decides) | (framing.settings(own_size(model)) if assigned_by is None else {}),
        rows=len(source),
        updates=job.epochs * data.order.updates,
    )
    return plan, data


def held_prompts(job: TrainJob, model: ModelFolder, source: Assignments | UnassignedRows) -> tuple[str, ...] | None:
    """The prompts of the preserve terms; None: those of the rows of each update. Raises UserError."""
    if not job.preserves:
        return ()
    if job.preserve_file is not None:
        return read_prompts(job.preserve_file)
    if job.preserve_prompts == TRAINING:
        return None
    return unseen_classes(model.classes, source.prompts()) if model.classes else general_prompts()


def held_line(job: TrainJob, data: MatchedData) -> str:
    """A line about the prompts at which the preserve terms keep the model."""
    if not data.preserve_rows:
        return "no preserve terms, since the rows have every class of the model (--preserve-prompts training applies them there)"
    rows = f"{data.preserve_rows} rows of each update"
    if job.preserve_prompts == TRAINING:
        return f"the preserve terms keep the model's images at the training prompts, {rows}"
    where = f"{len(data.preserve_prompts)} prompts" if job.preserve_file is not None else "prompts that no pair has"
    return f"the preserve terms keep the model's images at {where}, {rows} (--preserve-latent-weight 0 leaves them out)"


def fitting(job: TrainJob, model: ModelFolder) -> Assignments:
    """The job's assignments. Raises UserError if they do not fit the model or the options."""
    assert job.assignments is not None
    assignments = Assignments(job.assignments)
    check_assignments(assignments, model)
    made_with = assignments.plan.model_fingerprint
    fits = made_with in (model.fingerprint, converted_from(model.path, model.fingerprint))
    if job.noise == "matched" and not fits and not job.allow_stale:
        raise UserError(
            f"the assignments in {job.assignments} were made with another model (fingerprint {made_with}) than --model "
            f"{job.model} ({model.fingerprint}): {remedy_of(job.assignments)}assign again with this model, or add --allow-stale"
        )
    if job.noise == "matched" and assignments.of_rewards:
        raise UserError(
            f"{job.assignments} has results of `ortho reward`: the model makes these images at that noise already; "
            "accepted: --noise base (distil them to the noise that the search started from) or random"
        )
    if job.pixel_l1_weight and assignments.of_rewards:
        raise UserError(
            f"--pixel-l1-weight: {job.assignments} has results of `ortho reward`, latents without images; accepted: 0"
        )
    limits = {name for name, field in PairFields.model_fields.items() if mark_of(field) is conduct}
    if job.pair_fields().model_dump(exclude=limits) != PairFields().model_dump(exclude=limits):
        raise UserError(
            "with --assignments the pairs are read as they were assigned: leave the options about reading pairs out"
        )
    return assignments


def remedy_of(assignments: str) -> str:
    """The first part of the remedy, if the assignments were made with LoRAs: the command that makes such a model."""
    try:
        config = json_object(open_store(assignments).read("summary.json"), "summary.json")["config"]
        loras = tuple(AddedLora(**each) for each in config.get("lora", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f"`{converting(config['model'], loras, 'FOLDER')}` makes the one for --model; or " if loras else ""


def unassigned(job: TrainJob, model: ModelFolder, framing: Framing) -> UnassignedRows:
    """The rows of the job's pair set. Raises UserError."""
    if job.pairs is None:
        raise UserError("nothing to train on: give --assignments, or --pairs with --noise online or random")
    if job.noise not in ("online", "random"):
        raise UserError(f"--noise {job.noise} needs --assignments; accepted with --pairs alone: online and random")
    if job.center_noise:
        raise UserError("--center-noise applies to assigned noise: give --assignments")
    if job.parallel == "fsdp" and not framing.is_one_size:
        raise UserError(
            "--parallel fsdp: pairs without assignments have images of sizes that differ from worker to worker; accepted: "
            "--buckets none, or --assignments"
        )
    pairs = open_pairs(job.pairs, job.pair_fields())
    say_taken(pairs, framing)
    return UnassignedRows(pairs, model.image_size, model.classes, framing=framing)


def check_assignments(assignments: Assignments, model: ModelFolder) -> None:
    """Raises UserError if the latent shape differs, or the first noise cannot be rebuilt as it was recorded."""
    (frame,) = assignments.frames([0])
    shape = shape_at(frame, model.latent_shape, model.image_size)
    block_dimension(shape, assignments.plan.noise.patch_size)
    assignments.noise([0], shape)


def validation_of(job: TrainJob, model: ModelFolder, framing: Framing) -> str | None:
    """Fingerprint of the run that assigned the held-out rows. Raises UserError if these cannot be used."""
    if job.validation is None:
        return None
    held = Assignments(job.validation)
    theirs = held.plan.framing(own_size(model))
    if theirs.sizes != framing.sizes:
        raise UserError(
            f"--validation: {job.validation} was made for {shown_sizes(theirs, model)}, and the training images have "
            f"{shown_sizes(framing, model)}"
        )
    check_assignments(held, model)
    if not held.plan.noise.store_latents:
        raise UserError(f"--validation: the assignments in {job.validation} were made without --store-latents")
    if min(job.validation_rows, len(held)) < job.world:
        raise UserError(f"--validation: {job.validation} has fewer rows than the {job.world} workers")
    return held.plan.run_fingerprint


def images_of(assignments: str, pairs: str | None, limits: PairFields | None = None) -> PairSet:
    """The pair set of the assignments, at the location in their summary or at the new location `pairs`.

    It is read with the fields in the summary; fields of `limits` that are not at their default replace these.
    """
    try:
        config = json_object(open_store(assignments).read("summary.json"), "it")["config"]
        fields = PairFields(**{name: config[name] for name in PairFields.model_fields if name in config})
        fields = fields.model_copy(update=(limits or PairFields()).model_dump(exclude_defaults=True))
        return open_pairs(pairs or as_given(config["pairs"]), fields, "images", count=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{assignments}/summary.json does not name the images' location: {one_line(error)}") from error


def describe(job: TrainJob) -> dict[str, object]:
    """What a dry run prints."""
    models = TrainModels.open(job)
    plan, data = make_plan(job, models)
    content: dict[str, object] = dict(plan.as_json())
    if isinstance(data.source, UnassignedRows):
        content["recognised"] = data.source.pairs.record()
    kept = (2 + (job.epochs // job.save_every if job.save_every else 0)) * (2 if job.ema else 1)
    if not job.lora_rank or job.lora_merge:  # adapters are small beside these
        content["bytes_of_checkpoints_about"] = models.model.base.weight_bytes * kept
    if job.noise == "online":
        content["evaluations_of_matching"] = job.match_evaluations(plan.updates, job.batch_size)
    if job.gpu_memory is not None:
        content["memory"] = memory_of(Updates.of(job, models, data))
    return {**content, "model_folders": kept, "rows_at_once_on_each_worker": job.rows_at_once, "out": str(job.out)}


def run(job: TrainJob, callbacks: Sequence["UserCallback"] = (), models: TrainModels | None = None) -> int:
    """Train, or continue training. `callbacks` are Ray Train's; `models` are the job's if the caller has opened them.

    Returns 0. Raises UserError or RunFailed.
    """
    models = models or TrainModels.open(job)
    plan, data = make_plan(job, models)
    job = located(job)
    with launch.claimed(job, job.out, plan) as lease:
        if lease is not None:
            _train(job, plan, data, models, lease, callbacks)
    return 0


def _train(
    job: TrainJob,
    plan: TrainPlan,
    data: MatchedData,
    models: TrainModels,
    lease: Lease,
    callbacks: Sequence["UserCallback"],
) -> None:
    if isinstance(data.source, Assignments) and job.centers and len(data.source) > 1:
        mean = mean_noise(data.source, data)
        data = replace(data, center=mean)
        say(
            f"train: the mean of the assigned noises ({np.sqrt(np.square(mean).mean()):.3f} RMS) is subtracted from each"
        )
    if job.preserves:
        say(f"train: {held_line(job, data)}")
    title = f"train on {job.noise} noise"
    config = {"data": data, "models": models, "embeddings": job.prompt_embeddings}
    with ray_session():
        prompts.encode(job, data, models.model, plan.verb)
        launch.train(job, job.out, plan, train_worker, config, title, lease, callbacks)


def mean_noise(source: Assignments, data: MatchedData) -> np.ndarray:
    """The mean (C, H, W) of the assigned noises; those of images of other sizes are scaled to this shape, weighted by rows."""
    total, by_size = np.zeros(data.latent_shape, np.float32), source.by_size(data.image_size)
    for size, rows in by_size.items():
        shape = shape_at(Frame.plain(size), data.latent_shape, data.image_size)
        mean = source.mean_noise(shape, among=rows).numpy()
        if len(by_size) == 1 and shape == data.latent_shape:
            return mean
        total += map_at(mean, data.latent_shape) * (len(rows) / len(source))
    return total


def ending(job: TrainJob, code: int) -> list[str]:
    """The last lines of the command."""
    made = job.out / "checkpoint-final"
    kind = "adapter" if job.lora_rank and not job.lora_merge else "fine-tuned model"
    size = None
    with suppress(UserError):  # the assignments may have moved since
        model = open_model(job.model)
        size = trained_framing(job, model).usual(own_size(model))
    return [f"train: the {kind} is {made}", generating(made, beside(job.out, "images"), size=size)]
