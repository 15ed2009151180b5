"""Sweeps: `ortho sweep` tries several values of configuration fields and compares the results.

Every trial is an EM run, judged on held-out pairs. There are two objectives: how close the model comes to the target set, and
how little it drifts from the model it started from.
"""

import math
import time
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

from ortho_core.errors import UserError, install
from ortho_core.evaluation.metrics import METRICS, REWARD, cell, metric
from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, resolved, settings
from ortho_core.records.plan import Plan, Settings, fingerprint
from ortho_core.storage.lease import Lease, held
from rayjobs.em import job as em
from rayjobs.em.config import EmJob
from rayjobs.evaluate.job import make_plan as evaluation_plan
from rayjobs.evaluate.plan import EvaluationPlan
from rayjobs.reports.summaries import SWEEP_SUMMARY, ModelEstimates
from rayjobs.sweep.config import SweepJob
from rayjobs.sweep.pareto import choose, pareto_front
from rayjobs.sweep.points import base_of, points_of, reference_point, space_of
from rayjobs.sweep.records import SweepSummary, TrialRecord
from rayjobs.sweep.report import write_report
from rayjobs.sweep.space import Point, Space, short_names, text, with_values
from rayjobs.sweep.trial import begun_points, em_job, folder_of, judge_job, records_of, references_of
from rayjobs.training.trackers import check as check_trackers
from rayjobs.verb.console import aligned, say
from rayjobs.verb.image_size import as_options, framing_of
from rayjobs.verb.models import open_model
from rayjobs.verb.paths import located
from rayjobs.verb.plan import claim, replace_text
from rayjobs.verb.session import ray_session


class SweepPlan(Plan):
    """Trials on the same pairs, judged in the same way. Settings that are varied are left out.

    The space and the kind of search are not part of the plan, so a sweep over a wider space reuses the finished trials.
    """

    verb: ClassVar[str] = "sweep"

    kind: Literal["sweep"] = "sweep"
    pairs_fingerprint: str
    heldout_fingerprint: str | None
    model_fingerprint: str
    rows: int
    config: Settings
    assign: Settings
    train: Settings
    judge: Settings


def make_plan(job: SweepJob, model: ModelFolder) -> tuple[SweepPlan, SweepJob]:
    """The plan of the sweep, and the job with `--heldout` settled.

    Raises UserError for everything that can be checked before any work starts.
    """
    check_search(job)
    space = space_of(job)
    points = points_of(job, space)
    # The same sizes of images for all trials, whatever their patches.
    searches = [with_values(base_of(job), point).assign for point in points]
    patches = math.lcm(*(search.patch_size * search.regions for search in searches))
    framing = framing_of(job, model, patches, job.assign.seed)
    job = job.model_copy(update=as_options(framing, model))
    base = base_of(job)
    trial, settled, _ = em.make_plan(with_values(base, points[0]), model)
    if settled.heldout_place is None:
        raise UserError(
            "--heldout: there are no held-out pairs to judge trials on; accepted: another pair set, or a share such as 5%"
        )
    job = job.model_copy(update={"heldout": settled.heldout})
    base = base_of(job)
    for point in [*points[1:], *([reference_point(points)] if job.baseline else [])]:
        em.check(with_values(base, point), model, trial.rows)
    if job.early_stopping == "asha":
        check_asha(job, space)
    judged, _, _ = evaluation_plan(judge_job(job, {"base": job.model}, job.work_dir), {"base": model})
    check_metric(job, judged)
    sweep_settings = settings(job, decides)
    sweep_settings |= framing.settings(own_size(model))
    del sweep_settings["assign"], sweep_settings["train"], sweep_settings["evaluate"]
    if job.early_stopping == "none":
        del sweep_settings["grace_epochs"], sweep_settings["reduction_factor"]
    plan = SweepPlan(
        pairs_fingerprint=trial.pairs_fingerprint,
        heldout_fingerprint=trial.heldout_fingerprint,
        model_fingerprint=trial.model_fingerprint,
        rows=trial.rows,
        config=unvaried(sweep_settings, space),
        assign=unvaried(settings(job.assign, decides, resolved), space, "assign."),
        train=unvaried(settings(job.train, decides, resolved), () if job.baseline else space, "train."),
        judge=judged.judging(),
    )
    return plan, job


def unvaried(values: Settings, space: Collection[str], group: str = "") -> Settings:
    """The settings of a group without those that are varied."""
    return {name: value for name, value in values.items() if f"{group}{name}" not in space}


def check_search(job: SweepJob) -> None:
    """Raises UserError for settings that contradict each other."""
    if job.train.num_workers == 0:
        raise UserError("--train.num-workers: 0 trains in the driver's process; accepted in a sweep: 1 or more")
    for group, pool in (("assign", job.assign), ("evaluate", job.evaluate)):
        if not pool.pool_size[1]:
            raise UserError(f"--{group}.workers: 0 works in the driver's process; accepted in a sweep: 1 or more")
    if job.search == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise UserError(f"--search optuna: the package is not installed; {install('optuna')}") from error
    check_trackers(job)


def check_asha(job: SweepJob, space: Space) -> None:
    for name in ("cycles", "train.epochs"):
        if name in space:
            raise UserError(
                f"--early-stopping asha compares trials after equal epochs: --sweep.{name} cannot be varied with it"
            )
    if job.grace_epochs >= job.epochs:
        raise UserError(
            f"--grace-epochs: {job.grace_epochs} of {job.epochs} epochs leaves no epoch to end early; accepted: fewer"
        )
    if job.train.checkpoint_every or job.train.validate_every:
        raise UserError(
            "--early-stopping asha compares trials after each epoch; set --train.checkpoint-every and --train.validate-every to 0"
        )


def check_metric(job: SweepJob, judged: EvaluationPlan) -> None:
    """Raises UserError for a metric that does not exist, or that this sweep does not measure."""
    fit = [name for name, about in METRICS.items() if about.better != "neither" and name != "drift"]
    known, name = [*fit, f"{REWARD}NAME"], job.metric
    if name in fit:
        if name == "lpips" and judged.lpips is None:
            raise UserError("--metric lpips needs its weights: --evaluate.lpips FOLDER")
        return
    rewards = judged.rewards
    if name.startswith(REWARD) and name.removeprefix(REWARD) in rewards:
        return
    measured = f"; rewards measured here: {', '.join(rewards)}" if name.startswith(REWARD) else ""
    raise UserError(f"--metric: {name!r} is not a figure of target fit; accepted: {', '.join(known)}{measured}")


def describe(job: SweepJob) -> dict[str, object]:
    """What a dry run prints."""
    model = open_model(job.model)
    plan, job = make_plan(job, model)
    model = model.at(job.framing(model).main)
    space = space_of(job)
    points = points_of(job, space)
    steps = {assign_key(with_values(base_of(job), p)) for p in points}
    updates = job.epochs * (plan.rows // job.train.batch_size)
    listed = [", ".join(f"{k}={text(v)}" for k, v in named(point).items()) for point in points]
    return {
        **plan.as_json(),
        "space": {name: list(spec.extremes) for name, spec in space.items()},
        "trials": listed if job.search != "optuna" else len(points),
        "e_steps": len(steps) if job.search != "optuna" else f"at most {len(points)}",
        "updates_of_one_trial_about": updates,
        "trials_at_once": job.max_concurrent or "as many as the cluster has room for",
        **memory_of(job, points[0], model, plan.rows),
        "work_dir": str(job.work_dir),
    }


def memory_of(job: SweepJob, point: Point, model: ModelFolder, rows: int) -> dict[str, object]:
    """What a dry run reports for a GPU of `job.gpu_memory` GiB: the memory of each step of the first trial."""
    if job.gpu_memory is None:
        return {}
    return {"memory_of_the_first_trial": em.memory_of(em_job(job, point, job.work_dir), model, rows)}


def assign_key(job: EmJob) -> str:
    """A fingerprint: trials with the same one share their first E-step."""
    return fingerprint(settings(job.assign, decides, resolved))


def named(point: Point) -> Point:
    short = short_names(point)
    return {short[name]: value for name, value in point.items()}


def run(job: SweepJob) -> int:
    """Run the trials that are not done, then compare all. Returns 0, 1 if trials failed, or 3 if rows are in quarantine."""
    started = time.monotonic()
    model = open_model(job.model)
    requested = job
    plan, job = make_plan(job, model)
    model = model.at(job.framing(model).main)
    job = located(job)
    claim(job.work_dir, plan)
    with held(job.work_dir, "sweep", say) as lease:
        return _run(started, requested, job, model, lease)


def _run(started: float, requested: SweepJob, job: SweepJob, model: ModelFolder, lease: Lease) -> int:
    space = space_of(job)
    points = begun_points(job) if job.search == "optuna" else points_of(job, space)
    outcomes = records_of(job, points, points_of(job, space))
    compared = references_of(job)
    file = job.work_dir / SWEEP_SUMMARY
    seconds = SweepSummary.read(file).seconds_this_run if file.is_file() else 0.0
    if outcomes is None or compared is None:
        # Importing Ray Tune takes seconds; a sweep that is refused or finished does not need it.
        from rayjobs.sweep.tune import references, tune_trials

        with ray_session():
            compared = references(job, model, reference_point(points_of(job, space)))
            outcomes = tune_trials(job, model, space)
        seconds = round(time.monotonic() - started, 1)
    summary = summarise(job, space, compared, outcomes, seconds, requested.model_dump(mode="json"))
    lease.check()
    replace_text(file, summary.text())
    write_report(job.work_dir)
    say(table(summary))
    say(f"done: {verdict(summary)}; the report is {job.work_dir / 'report.html'}")
    if failed := {name: trial.error for name, trial in summary.trials.items() if trial.status == "failed"}:
        name, error = next(iter(failed.items()))
        total = len(summary.trials)
        say(f"ortho sweep: {len(failed)} of {total} trials failed; the same command tries them again; {name}: {error}")
        return 1
    return 3 if any(trial.quarantined for trial in summary.trials.values()) else 0


def summarise(
    job: SweepJob,
    space: Space,
    compared: ModelEstimates,
    outcomes: Sequence[TrialRecord],
    seconds: float,
    config: Settings,
) -> SweepSummary:
    """The summary of the sweep: every trial's figures, the Pareto front, and the trial chosen under `--max-drift`."""
    trials = {folder_of(job, record.values).name: record for record in outcomes}
    points = {}
    for name, record in trials.items():
        if record.status == "finished":
            fit = record.metrics[job.metric].value
            points[name] = (fit if job.lower_is_better else -fit, record.metrics["drift"].value)
    chosen = choose(points, job.max_drift) if job.max_drift is not None else None
    return SweepSummary(
        fields=short_names(space),
        metric=job.metric,
        max_drift=job.max_drift,
        references=compared,
        trials=trials,
        front=pareto_front(points),
        chosen=chosen,
        model=trials[chosen].model if chosen else None,
        seconds_this_run=seconds,
        config=config,
    )


def verdict(summary: SweepSummary) -> str:
    """The result of the sweep in one sentence."""
    front = f"{len(summary.front)} of {len(summary.trials)} trials are on the Pareto front"
    if summary.max_drift is None:
        return front
    if summary.chosen is None:
        return f"{front}; none has a drift of {summary.max_drift:g} or less"
    return f"{front}; the best fit with a drift of {summary.max_drift:g} or less is {summary.chosen}: {summary.model}"


def table(summary: SweepSummary) -> str:
    """A text table of fit and drift: the references first, then the trials by drift."""
    fit = summary.metric
    rows = [["", "trial", metric(fit).title, "drift", "status"]]
    for name, figures in summary.references.items():
        rows.append(["", name, cell(figures, fit), cell(figures, "drift"), ""])

    def by_drift(item: tuple[str, TrialRecord]) -> float:
        return item[1].metrics["drift"].value if item[1].status == "finished" else float("inf")

    for name, trial in sorted(summary.trials.items(), key=by_drift):
        mark = "→" if name == summary.chosen else "*" if name in summary.front else ""
        rows.append([mark, name, cell(trial.metrics, fit), cell(trial.metrics, "drift"), trial.status])
    return aligned(rows) + "\n* on the Pareto front" + ("; → chosen" if summary.chosen else "")
