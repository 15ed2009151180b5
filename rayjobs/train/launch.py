"""Workers under Ray Train: start them, let it restart them, keep what a run resumes from in order."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ortho_core.errors import RunFailed, UserError
from rayjobs.train.progress import follow
from rayjobs.train.run_files import HISTORY, STOPPED, SUMMARY, forget, rescue
from rayjobs.verb.console import summary_json
from rayjobs.verb.plan import replace_text
from rayjobs.verb.session import innermost


def conclude(job: Any, sealed: dict[str, Any], result: dict[str, Any], seconds: float) -> None:
    """Write the summary, which marks a run as done, and remove what it would have resumed from."""
    told = {"rows": sealed["rows"], "updates": sealed["updates"], "seconds_this_run": round(seconds, 2)}
    settings = {"config": job.model_dump(mode="json"), "run_fingerprint": sealed["run_fingerprint"]}
    replace_text(job.out / SUMMARY, summary_json({**result, **told, **settings}))
    forget(job.out)


def run_workers(
    job: Any,
    worker: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    title: str,
    updates: int,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Run workers under Ray Train, which restarts them after a failure, from the last resumable state; rank 0's summary.

    `job` says where and how many; `callbacks` are Ray Train's. Raises UserError or RunFailed.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    if job.fitting(job.world) < job.world:
        raise UserError(
            f"--num-workers: {job.num_workers} is more than the cluster has room for; see --cpus-per-worker"
        )
    gpus = job.gpus()
    if job.num_workers > 1 and 0 < gpus < 1:
        raise UserError(
            f"--gpus-per-worker: {gpus:g} puts several DDP workers on one GPU, which NCCL refuses; accepted: 1"
        )
    (job.out / STOPPED).unlink(missing_ok=True)
    rescue(job.out)
    resources = {"CPU": job.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=job.num_workers, use_gpu=bool(gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name="state",
            storage_path=str(job.out),
            failure_config=FailureConfig(max_failures=job.max_restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=job.keep_states),
            callbacks=list(callbacks),
        ),
    )
    with follow(job.out / HISTORY, title, updates), own_interrupts():
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise RunFailed(f"training failed: {innermost(error)}") from error
    summary = dict(result.return_value or {})
    if "error" in summary:
        (job.out / STOPPED).unlink(missing_ok=True)
        raise RunFailed(f"training failed: {summary['error']}")
    return summary


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
