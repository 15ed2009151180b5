"""A sweep's trials under Ray Tune: how many run at once, the search, early stopping, and reports.

A trial's result is in its own folder, not in Tune's state. When a sweep is started again, it reports the results of finished
trials to Tune, and Tune runs the others.
"""

import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import ray
from pydantic import JsonValue
from ray import tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignSettings
from rayjobs.em import steps
from rayjobs.evaluate import job as evaluate
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.reports.summaries import EVALUATION, Evaluation, ModelEstimates
from rayjobs.sweep.config import SweepJob
from rayjobs.sweep.points import points_of
from rayjobs.sweep.records import REFERENCES, CurvePoint, TrialRecord
from rayjobs.sweep.space import Choices, Point, Range, Space
from rayjobs.sweep.trial import (
    EStep,
    begun_points,
    em_job,
    evaluation_of,
    folder_of,
    judge_job,
    record_of,
    run_trial,
    stage_of,
    write_record,
)
from rayjobs.train import job as train
from rayjobs.train.config import TrainSettings
from rayjobs.train.models import TrainModels
from rayjobs.training.loop import Report
from rayjobs.verb.console import say
from rayjobs.verb.faults import explained, of_step
from rayjobs.verb.resources import WorkerResources

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: The last report of a trial, with the keys that Tune adds.
TuneResult = dict[str, JsonValue]
#: The name of the folder of Tune's own files.
TUNE = "tune"
#: The resources of a trial in Tune: its steps request their own, and `room_for` limits how many trials run at once.
NEXT_TO_NOTHING = {"memory": 1e6}
#: Seconds between lines on the running trials, and how many of them are shown.
EVERY_S, TRIALS_SHOWN = 30.0, 4
#: Trials at once on a cluster that grows on demand, if `--max-concurrent` is 0.
MANY = 8


def references(job: SweepJob, model: ModelFolder, point: Point) -> ModelEstimates:
    """Judge the base model and direct SFT, which every trial is compared with; also assign the held-out rows if needed."""
    models = {"base": model}
    beside = em_job(job, point, job.work_dir / REFERENCES)
    if job.watched:
        say("held-out pairs: searching the noise that the first model maps closest to each image")
        with of_step("assign", AssignSettings):
            assign.run(steps.cached(beside, steps.heldout_job(job), model), model)
    if job.baseline:
        say("E-step of the first trial")
        with of_step("assign", AssignSettings):
            assign.run(steps.cached(beside, steps.assign_job(beside, 1, job.model), model), model)
        say("direct SFT on random noise, for comparison")
        direct = steps.baseline_job(beside)
        with of_step("train", TrainSettings):
            train.run(direct, models=TrainModels(model, model))
        models["direct"] = ModelFolder.open(direct.out / "checkpoint-final").at(model.image_size)
    say("evaluation on held-out pairs: " + " and ".join(models))
    paths = {name: folder.path for name, folder in models.items()}
    with of_step("evaluate", EvaluateSettings):
        evaluate.run(judge_job(job, paths, evaluation_of(job)), models)
    return Evaluation.read(evaluation_of(job) / EVALUATION).metrics


def room_for(job: SweepJob) -> int:
    """How many trials the cluster has room for at once, in any step, so that no trial waits for another's resources.

    Raises UserError if there is no room for one.
    """
    steps: dict[str, tuple[WorkerResources, int]] = {
        "assign": (job.assign, job.assign.pool_size[0]),
        "train": (job.train, job.train.world),
        "evaluate": (job.evaluate, job.evaluate.pool_size[0]),
    }
    if job.assign.autoscaling or job.train.autoscaling:
        return job.max_concurrent or MANY
    room = []
    for name, (settings, workers) in steps.items():
        fitting = settings.fitting(1 << 20)
        if fitting < workers:
            raise UserError(f"--{name}: {workers} workers are more than the {fitting} that the cluster has room for")
        room.append(fitting // workers)
    return min([*room, job.max_concurrent or max(room)])


def with_decoders(job: SweepJob, at_once: int) -> SweepJob:
    """The job, with `cpus_per_decoder` 0 where this many trials at once leave no spare CPU for decoders.

    A trial alone would see spare CPUs and reserve them; with the others it would then wait for ever.
    """
    for name in ("assign", "evaluate"):
        settings = getattr(job, name)
        if settings.cpus_per_decoder is None and not settings.spare_cpu(at_once * settings.pool_size[1]):
            job = job.model_copy(update={name: settings.model_copy(update={"cpus_per_decoder": 0.0})})
    return job


class CycleReport(TuneReportCallback):  # type: ignore[misc]
    """Reports a trial's M-step to Tune after each epoch, counted over all cycles."""

    def __init__(self, epochs_before: int) -> None:
        super().__init__()
        self.epochs_before = epochs_before

    def after_report(self, run_context: object, metrics: list[Report], checkpoint: object) -> None:
        report = metrics[0]
        if "validation" in report:
            epoch = self.epochs_before + round(report["epoch"])
            point = CurvePoint(epoch=epoch, validation_latent=report["validation"]["latent"])
            super().after_report(run_context, [point.model_dump()], None)


def trial(config: dict[str, JsonValue], job: SweepJob, model: ModelFolder, e_steps: ActorHandle) -> None:
    """The function that Tune runs: a settled trial repeats its earlier reports; any other trial is run."""
    values = values_of(config)
    record = record_of(job, values)
    if record is not None:
        for point in record.curve:
            tune.report(point.model_dump())
        if record.status == "stopped":
            return
    else:
        record = run_trial(job, model, values, e_steps, lambda cycle: [CycleReport((cycle - 1) * job.train.epochs)])
    last = record.curve[-1].model_dump() if record.curve else {}
    figures = {name: estimate.value for name, estimate in record.metrics.items()}
    tune.report({**last, **figures, "epoch": job.epochs + 1, "finished": True})


def values_of(config: dict[str, JsonValue]) -> Point:
    """A trial's values, from its Tune configuration: a grid has the point under `trial`, Optuna has single fields."""
    point = config.get("trial", config)
    assert isinstance(point, dict)
    return dict(point)


class Outcomes(tune.Callback):  # type: ignore[misc]
    """In the driver: writes the records of trials that are ended early, and prints the progress of all."""

    def __init__(self, job: SweepJob, total: int) -> None:
        self.job, self.total, self.done = job, total, 0
        self.curves: dict[str, list[CurvePoint]] = {}
        self.last_line = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Every `EVERY_S` seconds, print a line with the steps of the running trials."""
        if time.monotonic() - self.last_line < EVERY_S:
            return
        self.last_line = time.monotonic()
        running = [values_of(trial.config) for trial in trials if trial.status == "RUNNING"]
        stages = [f"{folder_of(self.job, v).name}: {stage_of(self.job, v)}" for v in running]
        if stages:
            more = f" and {len(stages) - TRIALS_SHOWN} more" if len(stages) > TRIALS_SHOWN else ""
            say(f"sweep: {self.done}/{self.total} trials; now {'; '.join(stages[:TRIALS_SHOWN])}{more}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: TuneResult, **info: object
    ) -> None:
        if not result.get("finished"):
            self.curves.setdefault(trial.trial_id, []).append(CurvePoint.model_validate(result))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        values = values_of(trial.config)
        if not trial.last_result.get("finished") and record_of(self.job, values) is None:
            write_record(
                self.job, TrialRecord(status="stopped", values=values, curve=tuple(self.curves[trial.trial_id]))
            )
        self._print(trial, values)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._print(trial, values_of(trial.config))

    def _print(self, trial: Trial, values: Point) -> None:
        self.done += 1
        last, name = trial.last_result or {}, folder_of(self.job, values).name
        if last.get("finished"):
            status = f"{self.job.metric} {last[self.job.metric]:.4g}, drift {last['drift']:.4g}"
        elif trial.status == "ERROR":
            status = "failed"
        else:
            error = f"held-out latent MSE {last.get('validation_latent', 0):.4g}"
            status = f"ended after {last.get('epoch', 0):g} epochs, {error}"
        say(f"sweep: {self.done}/{self.total} trials; {name}: {status}")


def tune_trials(job: SweepJob, model: ModelFolder, space: Space) -> list[TrialRecord]:
    """Run every trial that is not settled. Returns the records of all trials, in order."""
    points = points_of(job, space)
    at_once = room_for(job)
    job = with_decoders(job, at_once)
    say(f"sweep: {len(points)} trials, {min(at_once, len(points))} at once")
    e_steps = ray.remote(num_cpus=0, max_concurrency=1)(EStep).remote()
    quiet()
    shutil.rmtree(job.work_dir / TUNE, ignore_errors=True)  # a new start does not need it
    tuner = tune.Tuner(
        tune.with_resources(partial(trial, job=job, model=model, e_steps=e_steps), NEXT_TO_NOTHING),
        # With Optuna, the searcher has the space.
        param_space={} if job.search == "optuna" else {"trial": tune.grid_search(points)},
        tune_config=replace(
            search(job, space),
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=lambda t: f"{folder_of(job, values_of(t.config)).name}-{t.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(job.work_dir),
            verbose=0,
            callbacks=[Outcomes(job, len(points)), *trackers(job)],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    return [outcome(job, result) for result in tuner.fit()]


def outcome(job: SweepJob, result: tune.Result) -> TrialRecord:
    """A trial's record; for a failed trial, one with the reason is written first."""
    values = values_of(result.config)
    if result.error is not None:
        return write_record(job, TrialRecord(status="failed", values=values, error=explained(result.error, job)))
    record = record_of(job, values)
    if record is None:
        raise RunFailed(f"the trial {folder_of(job, values).name} left no record; run the same command again")
    return record


def search(job: SweepJob, space: Space) -> tune.TuneConfig:
    """Tune's configuration: the objectives, the searcher, and the scheduler that ends trials early."""
    asha = job.early_stopping == "asha"
    if asha:
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=job.epochs + 1,  # the last report is the evaluation, after the last epoch
            grace_period=job.grace_epochs,
            reduction_factor=job.reduction_factor,
        )
        config = tune.TuneConfig(scheduler=scheduler, metric="validation_latent", mode="min")
    else:
        config = tune.TuneConfig(scheduler=FIFOScheduler())
    if job.search != "optuna":
        return config
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("optuna").setLevel(logging.ERROR)
    metrics, modes = [job.metric, "drift"], ["min" if job.lower_is_better else "max", "min"]
    known = begun_points(job)
    searcher = OptunaSearch(
        distributions(space),
        metric=config.metric if asha else metrics,
        mode=config.mode if asha else modes,
        # A new sampler with the same seed would propose the first trials again.
        seed=int(np.random.SeedSequence([job.search_seed, len(known)]).generate_state(1)[0]),
        points_to_evaluate=known or None,
    )
    return replace(config, search_alg=searcher, num_samples=job.samples)


def distributions(space: Space) -> dict[str, "BaseDistribution"]:
    """The space as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def one(spec: Choices | Range) -> "BaseDistribution":
        if isinstance(spec, Choices):
            return CategoricalDistribution(spec.values)
        if spec.whole:
            return IntDistribution(int(spec.low), int(spec.high), log=spec.log)
        return FloatDistribution(spec.low, spec.high, log=spec.log)

    return {name: one(spec) for name, spec in space.items()}


def trackers(job: SweepJob) -> list[tune.Callback]:
    """Tune's own callbacks, for MLflow and W&B."""
    from rayjobs.training.trackers import ENVIRONMENT

    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    callbacks: list[tune.Callback] = []
    if job.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ortho"
        callbacks.append(MLflowLoggerCallback(tracking_uri=job.mlflow, experiment_name=name))
    if job.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        class Forgiving(WandbLoggerCallback):  # type: ignore[misc]
            """A tracker that could not start (no key, no server) has no queue; its KeyError must not end the sweep."""

            def log_trial_result(self, iteration: int, trial: Trial, result: TuneResult) -> None:
                with suppress(KeyError):
                    super().log_trial_result(iteration, trial, result)

            def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
                with suppress(KeyError):
                    super().log_trial_end(trial, failed)

        entity, _, project = job.wandb.rpartition("/")
        # Workers of a running cluster do not have the environment of this process.
        here = {k: os.environ[f"WANDB_{k.upper()}"] for k in ("mode", "dir") if f"WANDB_{k.upper()}" in os.environ}
        callbacks.append(Forgiving(project=project, entity=entity or None, group=job.work_dir.name, **here))
    return callbacks


def quiet() -> None:
    """Silence Tune's own output; `Outcomes` prints the progress."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output prints even with `verbose` 0
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep as it ends every job
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
