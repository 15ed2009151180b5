"""The M-step job: `ortho train` fine-tunes on assigned noise (or, for comparison, on random noise) with Ray Train."""

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ortho_core.assignments import FORMAT, Assignments
from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.base import latent_shape_of, model_fingerprint
from ortho_core.matched_data import Order
from ortho_core.pairs import PairFields, PairSet
from ortho_core.sft import SftConfig
from ortho_core.storage import Location, absolute, open_store
from ortho_core.transform import block_dimension
from rayjobs.ledger import claim, fingerprint, replace_text
from rayjobs.plots import plot_history
from rayjobs.progress import Progress, say, summary_json
from rayjobs.session import WorkerResources, innermost, ray_session
from rayjobs.train_worker import HISTORY, train_worker


class TrainSettings(SftConfig, WorkerResources):
    """How the M-step runs; `em` has these under `train.`."""

    noise: Literal["matched", "random"] = Field(
        "matched", description="matched: the assigned noise; random: direct SFT"
    )
    epochs: int = Field(5, ge=1, description="passes over the assignments")
    batch_size: int = Field(16, ge=1, description="rows of one update, over all workers")
    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="updates over which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16: autocast, weights stay float32")
    save_every: int = Field(
        1, ge=0, description="keep checkpoint-epoch-NNN every so many epochs (0: best and final only)"
    )
    seed: int = Field(0, ge=0, description="decides the order of rows and every random noise")
    num_workers: int = Field(1, ge=1, description="DDP processes")


class TrainJob(TrainSettings):
    """Fine-tune a model on assigned noise (the M-step)."""

    assignments: Location = Field(description="folder or URL that `ortho assign` wrote to")
    model: Path = Field(description="model folder to start from")
    out: Path = Field(description="folder for checkpoints and curves; the same command again resumes")
    pairs: Location | None = Field(
        None, description="where the images are, if not where the assignments were made from"
    )
    preserve_model: Path | None = Field(
        None, description="model f_0 that the preserve terms hold to (default: --model)"
    )


#: Options that decide how fast a run goes, not what comes out of it.
INDIFFERENT = WorkerResources.model_fields.keys() | {"num_workers"}


def make_plan(job: TrainJob) -> tuple[dict[str, Any], Assignments, PairSet | None]:
    """What the run will do. Raises UserError for whatever can be found wrong beforehand."""
    assignments = Assignments(job.assignments)
    block_dimension(latent_shape_of(job.model), assignments.patch_size)
    assignments.noise([0], latent_shape_of(job.model))
    if job.preserve_model is not None and latent_shape_of(job.preserve_model) != latent_shape_of(job.model):
        raise UserError(f"--preserve-model {job.preserve_model} has another latent shape than --model {job.model}")
    if len(assignments) < job.batch_size:
        raise UserError(f"--batch-size: {job.batch_size} is more than the {len(assignments)} assigned rows")
    if job.batch_size % job.num_workers:
        raise UserError(f"--batch-size: {job.batch_size} does not divide among {job.num_workers} workers")
    pairs = None
    if job.pixel_l1_weight or not assignments.has_target_latents:
        pairs = images_of(job.assignments, job.pairs)
    settings = {k: v for k, v in job.model_dump(mode="json").items() if k in TrainSettings.model_fields}
    plan = {
        "format": FORMAT,
        "assignments": assignments.plan["run_fingerprint"],
        "model_fingerprint": model_fingerprint(job.model),
        "preserve_fingerprint": model_fingerprint(job.preserve_model or job.model),
        "config": {k: v for k, v in settings.items() if k not in INDIFFERENT},
        "rows": len(assignments),
        "updates": job.epochs * Order(len(assignments), job.batch_size, job.seed).batches,
    }
    return {**plan, "run_fingerprint": fingerprint(plan)}, assignments, pairs


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
    content, _, _ = make_plan(job)
    size = sum(f.stat().st_size for f in job.model.rglob("*") if f.is_file())
    kept = 2 + (job.epochs // job.save_every if job.save_every else 0)
    return {**content, "bytes_of_checkpoints_about": size * kept, "out": str(job.out)}


def run(job: TrainJob) -> int:
    """Train, or go on training. Returns 0. Raises UserError or RunFailed."""
    sealed, assignments, pairs = make_plan(job)
    paths = {k: getattr(job, k) for k in ("model", "out", "preserve_model")}
    job = job.model_copy(update={k: v.absolute() for k, v in paths.items() if v is not None})
    job = job.model_copy(
        update={"assignments": absolute(job.assignments), "pairs": pairs.location if pairs is not None else None}
    )
    claim(job.out, sealed, "train")
    summary_file = job.out / "train_summary.json"
    if summary_file.is_file():
        shutil.rmtree(job.out / "state", ignore_errors=True)
        say(f"train: {job.out} is complete")
        return 0
    started = time.monotonic()
    with ray_session():
        result = fit(job, sealed)
    plot_history(job.out / HISTORY, job.out / "train_history.png")
    replace_text(
        summary_file,
        summary_json(
            {
                **result,
                "rows": len(assignments),
                "updates": sealed["updates"],
                "seconds_this_run": round(time.monotonic() - started, 2),
                "config": job.model_dump(mode="json"),
                "run_fingerprint": sealed["run_fingerprint"],
            }
        ),
    )
    shutil.rmtree(job.out / "state", ignore_errors=True)
    return 0


def fit(job: TrainJob, sealed: dict[str, Any]) -> dict[str, Any]:
    """Run the workers under Ray Train; it restarts them after a failure, from the last epoch."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    if job.fitting(job.num_workers) < job.num_workers:
        raise UserError(
            f"--num-workers: {job.num_workers} is more than the cluster has room for; see --cpus-per-worker"
        )
    gpus = job.gpus()
    if job.num_workers > 1 and 0 < gpus < 1:
        raise UserError(
            f"--gpus-per-worker: {gpus:g} puts several DDP workers on one GPU, which NCCL refuses; accepted: 1"
        )
    resources = {"CPU": job.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job.model_dump(mode="json")},
        scaling_config=ScalingConfig(num_workers=job.num_workers, use_gpu=bool(gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name="state",
            storage_path=str(job.out),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with follow(job, sealed["updates"]), own_interrupts():
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise RunFailed(f"training failed: {innermost(error)}") from error
    return dict(result.return_value or {})


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Put the handler of Ctrl-C back: Ray Train leaves its own behind, which would end a later step with exit code 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class follow:
    """Show the updates that the workers have logged so far, while the block runs."""

    def __init__(self, job: TrainJob, updates: int) -> None:
        self.file = job.out / HISTORY
        self.progress = Progress(f"train on {job.noise} noise", updates, "updates", done=self._logged()[0])
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._show()
        self.progress.close()

    def _run(self) -> None:
        while not self.stop.wait(1.0):
            self._show()

    def _show(self) -> None:
        updates, loss = self._logged()
        if updates > self.progress.done:
            self.progress.advance(updates - self.progress.done, f"loss {loss:.4f}")

    def _logged(self) -> tuple[int, float]:
        try:
            last = json.loads(self.file.read_text().splitlines()[-1])
            return int(last["update"]), float(last["loss"])
        except (OSError, ValueError, IndexError, KeyError):
            return 0, 0.0


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
