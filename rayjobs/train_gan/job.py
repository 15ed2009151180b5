"""`ortho train-gan`: small one-step generators of labelled images (MNIST, Fashion-MNIST, CIFAR-10, ...), with Ray Train."""

import numpy as np
from pydantic import ValidationError

from ortho_core.errors import NoPairSet, UserError
from ortho_core.generators.class_conditional import ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.fitting.class_groups import Groups
from ortho_core.generators.fitting.diversity import Diversity
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, settings
from ortho_core.pairs.known_sets import KNOWN, Labelled, open_split
from ortho_core.pairs.pair_set import PairSet
from rayjobs.reports.next_steps import beside, generating
from rayjobs.train_gan.config import TrainGanJob
from rayjobs.train_gan.plan import TrainGanPlan
from rayjobs.train_gan.worker import train_gan_worker
from rayjobs.training import launch
from rayjobs.training.trackers import check as check_trackers
from rayjobs.verb.console import say
from rayjobs.verb.paths import located


def open_data(job: TrainGanJob) -> PairSet:
    """The split of the job. Raises UserError if there is none; the message names the source of the set."""
    try:
        pairs = open_split(job.root, "test" if job.test_split else "train")
    except NoPairSet as error:
        home = f"; {KNOWN[job.data].home}" if job.data in KNOWN else ""
        raise NoPairSet(f"--root: {error}{home}") from error
    say(f"data: {pairs.line()}")
    return pairs


def make_plan(job: TrainGanJob) -> tuple[TrainGanPlan, PairSet]:
    """The plan and the pair set of the run. Raises UserError for everything that can be checked before the run."""
    check_trackers(job)
    parts = job.world * job.group_size
    if job.batch_size % parts:
        raise UserError(
            f"--batch-size: {job.batch_size} does not divide among {job.world} workers in groups of {job.group_size} "
            "images (--group-size)"
        )
    pairs = open_data(job)
    known = KNOWN.get(job.data)
    labelled = Labelled.of(pairs, known.classes if known else None)
    config = generator_config(job, labelled.classes, image_shape_of(job, pairs, labelled))
    groups = Groups(labelled.labels, job.group_size, job.groups_per_update, job.seed)
    if not groups.updates:
        raise UserError(
            f"--batch-size: {pairs.location} has {groups.groups} groups of {job.group_size} images of one class, and an update "
            f"needs {job.groups_per_update}; lower --batch-size or --group-size"
        )
    plan = TrainGanPlan(
        pairs_fingerprint=pairs.fingerprint(),
        generator=config,
        config=settings(job, decides),
        rows=len(labelled.rows),
        bad_rows=len(labelled.bad),
        updates=job.epochs * groups.updates,
    )
    return plan, pairs


def image_shape_of(job: TrainGanJob, pairs: PairSet, labelled: Labelled) -> tuple[int, int, int]:
    """(c, Y, X). For an unknown set, the first images decide whether it is grey. Raises UserError."""
    if (known := KNOWN.get(job.data)) is not None:
        c, Y, X = known.image_shape
        size = job.image_size
        return (c, Y, X) if size is None else (c, size, size)
    Y = job.image_size or height_of(pairs, labelled)
    first, _ = Labelled(labelled.classes, labelled.rows[:64], labelled.labels[:64], []).images(pairs, (3, Y, Y))
    grey = bool((np.ptp(first, axis=1) == 0).all())
    return (1 if grey else 3), Y, Y


def height_of(pairs: PairSet, labelled: Labelled) -> int:
    """The height of the first image that can be read. Raises UserError if none of the first 64 can."""
    import io

    from PIL import Image

    for row in labelled.rows[:64]:
        try:
            with Image.open(io.BytesIO(pairs.fetch(row))) as image:
                return image.height
        except (UserError, OSError, ValueError):
            continue
    raise UserError(f"none of the first images of {pairs.location} can be read")


def generator_config(job: TrainGanJob, classes: tuple[str, ...], image_shape: tuple[int, int, int]) -> ClassConfig:
    """The generator's configuration. Raises UserError if the options do not make a network."""
    shape = (*job.noise_shape, 1, 1) if len(job.noise_shape) == 1 else job.noise_shape
    if len(shape) != 3:
        raise UserError(f"--noise-shape: {','.join(map(str, shape))} is not accepted: C,H,W, or one number")
    try:
        return ClassConfig(classes=classes, noise_shape=shape, image_shape=image_shape, widths=job.widths)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--noise-shape, --widths, --image-size: {message}") from error


def describe(job: TrainGanJob) -> dict[str, object]:
    """What a dry run prints."""
    plan, pairs = make_plan(job)
    weights = 4 * sum(p.numel() for p in ClassNetwork(plan.generator).parameters())
    images = plan.rows * int(np.prod(plan.generator.image_shape))
    each = job.fit_config().noises + job.group_size
    return {
        **plan.as_json(),
        "recognised": pairs.record(),
        "generator_evaluations": plan.updates * job.groups_per_update * each,
        "bytes_of_images_in_each_worker": images,
        "bytes_of_the_generator": weights,
        "out": str(job.out),
    }


def run(job: TrainGanJob) -> int:
    """Train, or continue training. Returns 0. Raises UserError or RunFailed."""
    plan, pairs = make_plan(job)
    job = located(job)
    with launch.claimed(job, job.out, plan) as lease:
        if lease is None:
            return 0
        config, title = {"location": pairs.location}, f"train-gan on {job.data}"
        summary = launch.train(job, job.out, plan, train_gan_worker, config, title, lease)
    measured = Diversity(summary["diversity"]["by_class"])
    say(f"train-gan: the generator is {job.out / 'checkpoint-final'}; {measured.sentence()}")
    return 0


def ending(job: TrainGanJob, code: int) -> list[str]:
    """The last line of the command, with a class as the prompt."""
    made = job.out / "checkpoint-final"
    return [generating(made, beside(job.out, "images"), prompt=ModelFolder.open(made).classes[0])]
