"""A training run from its plan to its summary: workers under Ray Train, restarts, and resuming."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ortho_core.errors import RunFailed, UserError
from ortho_core.records.plan import FINGERPRINT
from ortho_core.report.plots import draw_charts
from ortho_core.storage.aside import sweep_aside
from ortho_core.storage.lease import Lease, held
from ortho_core.storage.local import LocalStore
from ortho_core.storage.receipts import certified
from rayjobs.reports.curves import TrainingLog, training_charts
from rayjobs.training.config import TrainingSettings
from rayjobs.training.plan import TrainingPlan
from rayjobs.training.progress import follow
from rayjobs.training.receipts import check_receipts, receipts
from rayjobs.training.run_files import HISTORY, RAY_NOTES, STATES, STOPPED, TRAIN_SUMMARY, drop_damaged_states, forget
from rayjobs.verb.console import say, summary_json
from rayjobs.verb.faults import explained
from rayjobs.verb.plan import claim, replace_text
from rayjobs.verb.session import ray_session

if TYPE_CHECKING:
    from ray.train import UserCallback

T = TypeVar("T")
#: Seconds between two checks of the lease.
LOOK_S = 1.0


@contextmanager
def claimed(job: TrainingSettings, out: Path, plan: TrainingPlan) -> Iterator[Lease | None]:
    """Make `out` the folder of the run, and hold its lease inside the block; None if the run is complete, which is printed.

    Raises UserError, also if files of a finished run have changed.
    """
    claim(out, plan)
    if is_complete(job, out, plan):
        yield None
        return
    with held(out, plan.verb, say) as lease:
        # Another driver may have finished it meanwhile.
        yield None if is_complete(job, out, plan) else lease


def is_complete(job: TrainingSettings, out: Path, plan: TrainingPlan) -> bool:
    """Whether the run is complete, which is printed. Raises UserError if its files are damaged or lost."""
    if not (out / TRAIN_SUMMARY).is_file():
        return False
    check_receipts(out, certified(LocalStore(out), TRAIN_SUMMARY), job.verify)
    forget(out)
    say(f"{plan.verb}: {out} is complete")
    return True


def train(
    job: TrainingSettings,
    out: Path,
    plan: TrainingPlan,
    worker: Callable[[dict[str, Any]], Mapping[str, object]],
    config: Mapping[str, object],
    title: str,
    lease: Lease,
    callbacks: Sequence["UserCallback"] = (),
) -> dict[str, Any]:
    """Train, or continue training; returns the summary, whose file marks the run as complete. Raises UserError or RunFailed.

    Each worker is called with `config`, the job, the plan and the ticket of the folder's `lease`. `callbacks` are Ray Train's.
    """
    started, settings = time.monotonic(), job.model_dump(mode="json")
    worker_config = {"job": settings, "plan": plan, "ticket": lease.ticket, **config}
    with ray_session():
        result = run_workers(job, out, worker, worker_config, title, plan.updates, lease, callbacks)
    for failure in result["tracker_failures"]:
        say(f"{plan.verb}: {failure}")
    draw_charts(training_charts([TrainingLog(out / HISTORY)]), out / "train_history.png")
    summary = {
        **result,
        "rows": plan.rows,
        "updates": plan.updates,
        "seconds_this_run": round(time.monotonic() - started, 2),
        "config": settings,
        FINGERPRINT: plan.run_fingerprint,
        "files": {name: receipt.model_dump() for name, receipt in receipts(out).items()},
    }
    lease.check()
    replace_text(out / TRAIN_SUMMARY, summary_json(summary))
    forget(out)
    return summary


def run_workers(
    job: TrainingSettings,
    out: Path,
    worker: Callable[[dict[str, Any]], Mapping[str, object]],
    config: dict[str, object],
    title: str,
    updates: int,
    lease: Lease,
    callbacks: Sequence["UserCallback"] = (),
) -> dict[str, Any]:
    """Run workers under Ray Train, which restarts them from the last resumable state after a failure; returns rank 0's summary.

    Raises UserError or RunFailed.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    if job.fitting(job.world) < job.world:
        raise UserError(
            f"--num-workers: {job.num_workers} is more than the cluster has room for; see --cpus-per-worker"
        )
    if job.num_workers > 1 and job.device_kind == "mps":
        raise UserError("--device mps: PyTorch cannot share Apple's GPU between workers; accepted: --num-workers 1")
    gpus = job.gpus()
    if job.num_workers > 1 and 0 < gpus < 1:
        raise UserError(
            f"--gpus-per-worker: {gpus:g} puts several DDP workers on one GPU, which NCCL refuses; accepted: 1"
        )
    (out / STOPPED).unlink(missing_ok=True)
    sweep_aside(out / STATES, alone=True)
    for state in drop_damaged_states(out):
        say(f"{state} is damaged: the run continues from an earlier state, or from the start if there is none")
    resources = {"CPU": job.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=job.num_workers,
            use_gpu=bool(gpus),
            resources_per_worker=resources,
            label_selector=job.node_labels,
        ),
        run_config=RunConfig(
            name=RAY_NOTES,
            storage_path=str(out),
            failure_config=FailureConfig(max_failures=job.max_restarts),
            callbacks=list(callbacks),
        ),
    )
    with follow(out / HISTORY, title, updates):
        try:
            result = beside(trainer.fit, lease.check)
        except TrainingFailedError as error:
            raise RunFailed(f"training failed: {explained(error, job)}") from error
    summary = dict(result.return_value or {})
    if "error" in summary:
        (out / STOPPED).unlink(missing_ok=True)
        raise RunFailed(f"training failed: {summary['error']}")
    return summary


def beside(work: Callable[[], T], look: Callable[[], object]) -> T:
    """Run `work` in another thread, and `look` every second in this one; returns or raises what `work` does.

    In the main thread Ray Train would handle Ctrl-C itself: it waits for its controller, without a limit, and exits with 0.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not done.done():
        look()
        wait([done], LOOK_S)
    return done.result()
