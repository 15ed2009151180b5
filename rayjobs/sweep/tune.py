"""A sweep's trials under Ray Tune: how many at once, what is searched, when one is ended, who hears of it.

A trial's outcome is kept in its own folder, not in Tune's state: a sweep that is run again tells Tune what the finished
trials gave, and Tune makes the rest.
"""

import logging
import os
import shutil
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.assign import job as assign
from rayjobs.em import job as em
from rayjobs.evaluate import job as evaluate
from rayjobs.sweep.config import SweepJob, points_of
from rayjobs.sweep.records import Figures, TrialRecord, Watched
from rayjobs.sweep.space import Choices, Point, Range, Space
from rayjobs.sweep.trial import (
    REFERENCES,
    EStep,
    begun_points,
    em_job,
    evaluation_of,
    folder_of,
    judge_job,
    read_figures,
    record_of,
    run_trial,
    stage_of,
    write_record,
)
from rayjobs.train import job as train
from rayjobs.train.config import TrainModels
from rayjobs.verb.console import say
from rayjobs.verb.resources import WorkerResources
from rayjobs.verb.session import innermost

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from ray.actor import ActorHandle
    from ray.train import Checkpoint
    from ray.train.v2.api.callback import TrainRunContext
    from ray.tune import Result
    from ray.tune.experiment import Trial

#: The name under which Tune keeps its own files.
TUNE = "tune"
#: What a trial asks of Tune: its work asks for itself, and how many run at once is decided here.
NEXT_TO_NOTHING = {"memory": 1e6}
#: Seconds between lines on the running trials, and how many of them are shown.
EVERY_S, SHOWN = 30.0, 4
#: Trials at once where the cluster grows on demand and nothing else is said.
MANY = 8


def references(job: SweepJob, model: ModelFolder, point: Point) -> dict[str, Figures]:
    """The figures of the base model and of direct SFT, which every trial is compared with; and the held-out rows' noise."""
    models = {"base": model}
    beside = em_job(job, point, job.work_dir / REFERENCES)
    if job.watched:
        say("held-out pairs: the noise that the first model maps closest to each")
        assign.run(em.cached(beside, em.heldout_job(job), model), model)
    if job.baseline:
        say("E-step of the first trial")
        assign.run(em.cached(beside, em.assign_job(beside, 1, job.model), model), model)
        say("direct SFT on random noise, to compare with")
        direct = em.baseline_job(beside)
        train.run(direct, models=TrainModels(model, model))
        models["direct"] = ModelFolder.open(direct.out / "checkpoint-final")
    say("the held-out figures of " + " and ".join(models))
    paths = {name: folder.path for name, folder in models.items()}
    evaluate.run(judge_job(job, paths, evaluation_of(job)), models)
    return read_figures(evaluation_of(job))


def room_for(job: SweepJob) -> int:
    """How many trials the cluster has room for at once, whatever step each is at: then none waits for another's resources.

    Raises UserError where there is none for one.
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
        there = settings.fitting(1 << 20)
        if there < workers:
            raise UserError(f"--{name}: {workers} workers are more than the {there} that the cluster has room for")
        room.append(there // workers)
    return min([*room, job.max_concurrent or max(room)])


def with_decoders(job: SweepJob, at_once: int) -> SweepJob:
    """The job, its decoders without a CPU of their own where so many trials at once leave none to spare.

    A single trial would see CPUs that are spare until the others take them, and all of them would wait for ever.
    """
    for name in ("assign", "evaluate"):
        settings = getattr(job, name)
        if settings.cpus_per_decoder is None and not settings.spare_cpu(at_once * settings.pool_size[1]):
            job = job.model_copy(update={name: settings.model_copy(update={"cpus_per_decoder": 0.0})})
    return job


class CycleReport(TuneReportCallback):  # type: ignore[misc]
    """Tells Tune of a trial's M-step after each epoch, counted over all cycles."""

    def __init__(self, epochs_before: int) -> None:
        super().__init__()
        self.epochs_before = epochs_before

    def after_report(
        self, run_context: "TrainRunContext", metrics: list[dict[str, Any]], checkpoint: "Checkpoint | None"
    ) -> None:
        told = {"epoch": self.epochs_before + round(metrics[0]["epoch"])}
        if "validation" in metrics[0]:
            told["validation_latent"] = metrics[0]["validation"]["latent"]
            super().after_report(run_context, [told], None)


def trial(config: dict[str, Any], job: SweepJob, model: ModelFolder, e_steps: "ActorHandle") -> None:
    """What Tune runs: a trial that is settled tells again what it told; any other is run."""
    values: Point = config.get("trial", config)
    record = record_of(job, values)
    if record is not None:
        for entry in record["curve"]:
            tune.report(entry)
        if record["status"] == "stopped":
            return
    else:
        record = run_trial(job, model, values, e_steps, lambda cycle: [CycleReport((cycle - 1) * job.train.epochs)])
    last = dict(record["curve"][-1]) if record["curve"] else {}
    figures = {name: figure["value"] for name, figure in record["metrics"].items()}
    tune.report({**last, **figures, "epoch": job.epochs + 1, "finished": True})


def values_of(trial: "Trial | Result") -> Point:
    """A trial's values, from Tune's view of it or its result: a grid hands over whole points, Optuna single fields."""
    return dict(trial.config.get("trial", trial.config))


class Outcomes(tune.Callback):  # type: ignore[misc]
    """Hears of every trial in the driver: settles those that were ended early, and tells the person who waits."""

    def __init__(self, job: SweepJob, total: int) -> None:
        self.job, self.total, self.done = job, total, 0
        self.curves: dict[str, list[Watched]] = {}
        self.told = time.monotonic()

    def on_step_end(self, iteration: int, trials: list["Trial"], **info: object) -> None:
        """A line now and then on how the running trials stand."""
        if time.monotonic() - self.told < EVERY_S:
            return
        self.told = time.monotonic()
        running = [values_of(trial) for trial in trials if trial.status == "RUNNING"]
        stages = [f"{folder_of(self.job, v).name}: {stage_of(self.job, v)}" for v in running]
        if stages:
            more = f" and {len(stages) - SHOWN} more" if len(stages) > SHOWN else ""
            say(f"sweep: {self.done}/{self.total} trials; now {'; '.join(stages[:SHOWN])}{more}")

    def on_trial_result(
        self, iteration: int, trials: list["Trial"], trial: "Trial", result: dict[str, Any], **info: object
    ) -> None:
        if not result.get("finished"):
            entry = Watched(epoch=result["epoch"], validation_latent=result["validation_latent"])
            self.curves.setdefault(trial.trial_id, []).append(entry)

    def on_trial_complete(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: object) -> None:
        values = values_of(trial)
        if not trial.last_result.get("finished") and record_of(self.job, values) is None:
            write_record(self.job, values, "stopped", metrics={}, curve=self.curves[trial.trial_id])
        self._tell(trial, values)

    def on_trial_error(self, iteration: int, trials: list["Trial"], trial: "Trial", **info: object) -> None:
        self._tell(trial, values_of(trial))

    def _tell(self, trial: "Trial", values: Point) -> None:
        self.done += 1
        last, name = trial.last_result or {}, folder_of(self.job, values).name
        if last.get("finished"):
            told = f"{self.job.metric} {last[self.job.metric]:.4g}, drift {last['drift']:.4g}"
        elif trial.status == "ERROR":
            told = "failed"
        else:
            told = f"ended after {last.get('epoch', 0):g} epochs, held-out latent MSE {last.get('validation_latent', 0):.4g}"
        say(f"sweep: {self.done}/{self.total} trials; {name}: {told}")


def tune_trials(job: SweepJob, model: ModelFolder, space: Space) -> list[TrialRecord]:
    """Run every trial that is not settled. Returns a record of each, in the order of the plan."""
    points = points_of(job, space)
    at_once = room_for(job)
    job = with_decoders(job, at_once)
    say(f"sweep: {len(points)} trials, {min(at_once, len(points))} at once")
    e_steps = ray.remote(num_cpus=0, max_concurrency=1)(EStep).remote()
    quiet()
    shutil.rmtree(job.work_dir / TUNE, ignore_errors=True)  # nothing in it is needed again
    settings, parameters = search(job, space, points)
    tuner = tune.Tuner(
        tune.with_resources(partial(trial, job=job, model=model, e_steps=e_steps), NEXT_TO_NOTHING),
        param_space=parameters,
        tune_config=tune.TuneConfig(
            **settings,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=lambda t: f"{folder_of(job, values_of(t)).name}-{t.trial_id}",
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


def outcome(job: SweepJob, result: "Result") -> TrialRecord:
    """A trial's record; of one that failed, the reason."""
    values = values_of(result)
    if result.error is not None:
        return write_record(job, values, "failed", error=innermost(result.error), curve=[], metrics={})
    record = record_of(job, values)
    if record is None:
        raise RunFailed(f"the trial {folder_of(job, values).name} left no record; run the same command again")
    return record


def search(job: SweepJob, space: Space, points: list[Point]) -> tuple[dict[str, object], dict[str, object]]:
    """Tune's settings and its space."""
    asha = job.early_stopping == "asha"
    scheduler: TrialScheduler = FIFOScheduler()
    if asha:
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=job.epochs + 1,  # the last report is the evaluation, after the last epoch
            grace_period=job.grace_epochs,
            reduction_factor=job.reduction_factor,
        )
    single: dict[str, object] = {"metric": "validation_latent", "mode": "min"} if asha else {}
    if job.search != "optuna":
        return {"scheduler": scheduler, **single}, {"trial": tune.grid_search(points)}
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("optuna").setLevel(logging.ERROR)
    fit = "min" if job.lower_is_better else "max"
    objectives: dict[str, object] = single or {"metric": [job.metric, "drift"], "mode": [fit, "min"]}
    known = begun_points(job)
    # A sampler that begins anew with the same seed would propose the first trials once more.
    seed = int(np.random.SeedSequence([job.search_seed, len(known)]).generate_state(1)[0])
    searcher = OptunaSearch(distributions(space), **objectives, seed=seed, points_to_evaluate=known or None)
    return {"scheduler": scheduler, "search_alg": searcher, "num_samples": job.samples} | single, {}


def distributions(space: Space) -> dict[str, "BaseDistribution"]:
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
    found: list[tune.Callback] = []
    if job.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ortho"
        found.append(MLflowLoggerCallback(tracking_uri=job.mlflow, experiment_name=name))
    if job.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        class Forgiving(WandbLoggerCallback):  # type: ignore[misc]
            """A tracker that could not start (no key, no server) has no queue any more, and must not end the sweep."""

            def log_trial_result(self, iteration: int, trial: "Trial", result: dict[str, Any]) -> None:
                with suppress(KeyError):
                    super().log_trial_result(iteration, trial, result)

            def log_trial_end(self, trial: "Trial", failed: bool = False) -> None:
                with suppress(KeyError):
                    super().log_trial_end(trial, failed)

        entity, _, project = job.wandb.rpartition("/")
        # The workers of a cluster that runs already do not have this process's environment.
        here = {k: os.environ[f"WANDB_{k.upper()}"] for k in ("mode", "dir") if f"WANDB_{k.upper()}" in os.environ}
        found.append(Forgiving(project=project, entity=entity or None, group=job.work_dir.name, **here))
    return found


def quiet() -> None:
    """Tune's lines are about itself; what a person wants to know is told here."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # which prints even where `verbose` is 0
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep as it ends every job
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
