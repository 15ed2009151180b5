"""`ortho train-gan`: small one-step generators of labelled images (MNIST, Fashion-MNIST, CIFAR-10, ...), with Ray Train."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError

from ortho_core.assignments import FORMAT
from ortho_core.errors import NoPairSet, UserError
from ortho_core.generators.class_conditional import ClassConfig, ClassNetwork
from ortho_core.generators.fitting import FitConfig, terms_of
from ortho_core.generators.groups import Groups
from ortho_core.pairs import PairSet
from ortho_core.pairs.labelled import KNOWN, Labelled, open_split
from ortho_core.storage import Location, absolute
from rayjobs.ledger import claim, fingerprint
from rayjobs.plots import plot_training
from rayjobs.progress import say
from rayjobs.session import WorkerResources, ray_session
from rayjobs.trackers import TrackerSettings
from rayjobs.trackers import check as check_trackers
from rayjobs.train_gan_worker import train_gan_worker
from rayjobs.train_run import SUMMARY, conclude, forget, run_workers
from rayjobs.train_worker import HISTORY


def _numbers(value: Any) -> Any:
    """`4,8,8` or `64` as a tuple."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


class TrainGanJob(FitConfig, TrackerSettings, WorkerResources):
    """Train a small one-step generator on labelled images; a prompt is then the name of a class."""

    data: Literal["mnist", "fashion-mnist", "cifar10", "any"] = Field(
        description="what the images are, which decides classes and size; any: the classes are the prompts of the set"
    )
    root: Location = Field(
        description="folder or URL of the set: IDX files, CIFAR-10's binary batches, PNG sheets, Parquet, one folder per class, "
        "or any pair set"
    )
    test_split: bool = Field(False, description="train on the test split (else on the training split)")
    out: Path = Field(description="folder for the generator, pictures and curves; the same command again resumes")
    noise_shape: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = Field(
        (4, 8, 8), description="C,H,W of the noise map; one number n: a flat noise, the map (n, 1, 1) with patch size 1"
    )
    widths: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = Field(
        (32, 32, 16),
        description="channels of the network's blocks: two on the coarsest grid, then one after each doubling",
    )
    image_size: int | None = Field(
        None, ge=4, description="pixels along a side (none: the set's own; of --data any the first image's height)"
    )
    epochs: int = Field(2, ge=1, description="passes over the images")
    batch_size: int = Field(64, ge=1, description="images of one update, over all workers")
    num_workers: int = Field(1, ge=0, description="training processes (0: train in this process, for a debugger)")
    checkpoint_every: int = Field(200, ge=1, description="updates between resumable states")
    keep_states: int = Field(1, ge=1, description="resumable states that are kept")
    log_every: int = Field(10, ge=1, description="updates between entries of the log")
    max_restarts: int = Field(3, ge=0, description="how often dead workers are started again")
    seed: int = Field(0, ge=0, description="decides the weights to begin with, the order of images and every noise")

    @property
    def title(self) -> str:
        """What people call the run."""
        return self.out.name

    @property
    def world(self) -> int:
        return max(1, self.num_workers)

    @property
    def groups_per_update(self) -> int:
        """Over all workers."""
        return self.batch_size // self.group_size

    def fit_config(self) -> FitConfig:
        return FitConfig(**{name: getattr(self, name) for name in FitConfig.model_fields})


#: Options that decide how fast a run goes or what it tells, not what comes out of it.
INDIFFERENT = {
    *WorkerResources.model_fields,
    *TrackerSettings.model_fields,
    *("root", "out", "num_workers", "checkpoint_every", "keep_states", "log_every", "max_restarts"),
}


def open_data(job: TrainGanJob) -> PairSet:
    """The split that was asked for. Raises UserError, with where the set comes from, if there is none."""
    try:
        return open_split(job.root, "test" if job.test_split else "train")
    except NoPairSet as error:
        home = f"; {KNOWN[job.data].home}" if job.data in KNOWN else ""
        raise NoPairSet(f"--root: {error}{home}") from error


def make_plan(job: TrainGanJob) -> tuple[dict[str, Any], PairSet, ClassConfig]:
    """What the run will do, on what, and the generator's shape. Raises UserError for whatever can be found wrong before."""
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
            f"takes {job.groups_per_update}; lower --batch-size or --group-size"
        )
    settings = {k: v for k, v in job.model_dump(mode="json").items() if k not in INDIFFERENT}
    plan = {
        "format": FORMAT,
        "pairs_fingerprint": pairs.fingerprint(),
        "generator": config.model_dump(mode="json"),
        "config": settings,
        "rows": len(labelled.rows),
        "bad_rows": len(labelled.bad),
        "updates": job.epochs * groups.updates,
    }
    return {**plan, "run_fingerprint": fingerprint(plan)}, pairs, config


def image_shape_of(job: TrainGanJob, pairs: PairSet, labelled: Labelled) -> tuple[int, int, int]:
    """(c, Y, X). Of a set that is not known the first images tell whether it is grey. Raises UserError."""
    if (known := KNOWN.get(job.data)) is not None:
        c, Y, X = known.image_shape
        size = job.image_size
        return (c, Y, X) if size is None else (c, size, size)
    Y = job.image_size or height_of(pairs, labelled)
    first, _ = Labelled(labelled.classes, labelled.rows[:64], labelled.labels[:64], []).images(pairs, (3, Y, Y))
    grey = bool((np.ptp(first, axis=1) == 0).all())
    return (1 if grey else 3), Y, Y


def height_of(pairs: PairSet, labelled: Labelled) -> int:
    """Of the first image that can be read."""
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
    """Raises UserError where the options make no network."""
    shape = (*job.noise_shape, 1, 1) if len(job.noise_shape) == 1 else job.noise_shape
    if len(shape) != 3:
        raise UserError(f"--noise-shape: {','.join(map(str, shape))} is not accepted: C,H,W, or one number")
    try:
        return ClassConfig(classes=classes, noise_shape=shape, image_shape=image_shape, widths=job.widths)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--noise-shape, --widths, --image-size: {message}") from error


def plan(job: TrainGanJob) -> dict[str, Any]:
    """What a dry run prints."""
    content, _, config = make_plan(job)
    weights = 4 * sum(p.numel() for p in ClassNetwork(config).parameters())
    images = content["rows"] * int(np.prod(config.image_shape))
    return {
        **content,
        "generator_evaluations": content["updates"]
        * job.groups_per_update
        * (job.fit_config().noises + job.group_size),
        "bytes_of_images_in_each_worker": images,
        "bytes_of_the_generator": weights,
        "out": str(job.out),
    }


def run(job: TrainGanJob) -> int:
    """Train, or go on training. Returns 0. Raises UserError or RunFailed."""
    sealed, pairs, _ = make_plan(job)
    # As they are on this machine: workers have another current directory.
    job = job.model_copy(update={"out": job.out.resolve(), "root": absolute(job.root)})
    claim(job.out, sealed, "train-gan")
    if (job.out / SUMMARY).is_file():
        forget(job.out)
        say(f"train-gan: {job.out} is complete")
        return 0
    started = time.monotonic()
    with ray_session():
        loop = {"job": job.model_dump(mode="json"), "sealed": sealed, "location": pairs.location}
        result = run_workers(job, train_gan_worker, loop, f"train-gan on {job.data}", sealed["updates"])
    for failure in result.pop("tracker_failures"):
        say(f"train-gan: {failure}")
    plot_training(job.out / HISTORY, job.out / "train_history.png", terms_of(job.fit_config()))
    told = result.pop("told")
    conclude(job, sealed, result, time.monotonic() - started)
    say(f"train-gan: the generator is {job.out / 'checkpoint-final'}; {told}")
    return 0


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["train-gan", *sys.argv[1:]]))
