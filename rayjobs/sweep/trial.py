"""One trial of a sweep: an EM run at one point of the space, judged on the held-out pairs; its folder and its record."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.records.plan import PLAN_FILE, ReconstructionPlan, fingerprint, read_plan
from ortho_core.storage.open import open_store
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignJob
from rayjobs.em import job as em
from rayjobs.em import steps
from rayjobs.em.config import NO_HELDOUT, EmJob
from rayjobs.evaluate import job as evaluate
from rayjobs.evaluate.config import EvaluateJob, EvaluateSettings
from rayjobs.reports.summaries import EM_SUMMARY, EVALUATION, Cycle, EmSummary, Evaluation, ModelEstimates, cycle_name
from rayjobs.sweep.config import SweepJob
from rayjobs.sweep.points import base_of
from rayjobs.sweep.records import REFERENCES, CurvePoint, TrialRecord
from rayjobs.sweep.space import Point, short_names, text, with_values
from rayjobs.train.plan import TrainPlan
from rayjobs.training.progress import last_logged
from rayjobs.training.run_files import HISTORY
from rayjobs.verb.faults import of_step
from rayjobs.verb.plan import replace_text

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train import UserCallback

#: The file of a trial's record, in its folder.
TRIAL_RECORD = "trial.json"
#: The statuses of a trial that the next start runs.
UNSETTLED = ("running", "failed")
#: The longest name of a trial's folder, without the fingerprint after it.
LONGEST_NAME = 80


class EStep:
    """The actor that runs the E-steps of all trials, one after the other.

    If several trials need the same assignments, the first makes them; the others wait and find them complete.
    """

    def make(self, step: AssignJob, model: ModelFolder) -> int:
        return assign.run(step, model)


def folder_of(job: SweepJob, values: Point) -> Path:
    """The folder of a trial. It depends only on the values, not on the other trials."""
    short = short_names(values)
    readable = ",".join(f"{short[name]}={text(value)}" for name, value in values.items())
    readable = re.sub(r"[^\w.,=+-]+", "_", readable)[:LONGEST_NAME]
    exact = len(readable) < LONGEST_NAME and all(_is_exact(value) for value in values.values())
    return job.work_dir / "trials" / (readable if exact else f"{readable}-{fingerprint(values)[:6]}")


def _is_exact(value: JsonValue) -> bool:
    """Whether no other value has the same text."""
    if isinstance(value, float):
        return float(text(value)) == value
    return value is None or isinstance(value, int) or re.fullmatch(r"[\w.+-]+", str(value)) is not None


def record_of(job: SweepJob, values: Point) -> TrialRecord | None:
    """The record of a trial that is finished or stopped, else None."""
    file = folder_of(job, values) / TRIAL_RECORD
    record = TrialRecord.read(file) if file.is_file() else None
    return None if record is None or record.status in UNSETTLED else record


def begun_points(job: SweepJob) -> list[Point]:
    """The values of the trials that were begun, the oldest record first, at most `--samples`."""
    files = sorted((job.work_dir / "trials").glob(f"*/{TRIAL_RECORD}"), key=lambda file: file.stat().st_mtime)
    return [TrialRecord.read(file).values for file in files][: job.samples]


def records_of(job: SweepJob, points: list[Point], wanted: list[Point]) -> list[TrialRecord] | None:
    """The records of all trials, in order; None if one is not settled, or there are fewer than `wanted`."""
    records = [record for record in (record_of(job, values) for values in points) if record is not None]
    return records if len(records) >= len(wanted) and len(records) == len(points) else None


def write_record(job: SweepJob, record: TrialRecord) -> TrialRecord:
    """Write a trial's record, which this start and later ones read; returns it."""
    folder = folder_of(job, record.values)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / TRIAL_RECORD, record.text())
    return record


def em_job(job: SweepJob, values: Point, work_dir: Path) -> EmJob:
    """The EM run of a trial. The sweep does the held-out work and the baseline for all trials together."""
    shared = {"heldout": NO_HELDOUT, "baseline": False, "validate_on_heldout": False, "work_dir": work_dir}
    shared["part"] = job.training_fields().part
    cache = job.assignments_cache or job.work_dir / "assignments"
    settled = with_values(base_of(job), values).model_copy(update={**shared, "assignments_cache": cache})
    if not job.watched:
        return settled
    watched = settled.train.model_copy(update={"validation": str(steps.heldout_assignments(job))})
    return settled.model_copy(update={"train": watched})


def judge_job(
    job: SweepJob,
    models: dict[str, Path],
    out: Path,
    base_from: Path | None = None,
    trained_on: Path | None = None,
) -> EvaluateJob:
    """The evaluation of some models. The noise search is the same for every trial; it does not depend on the trial's E-step."""
    settings = job.evaluate.model_dump()
    return EvaluateJob(
        **settings,
        **job.heldout_fields().model_dump(),
        model=models,
        pairs=job.heldout_place,
        trained_on=trained_on,
        out=out,
        **job.size_options(),
        patch_size=job.assign.patch_size,
        base_from=base_from,
    )


def run_trial(
    job: SweepJob,
    model: ModelFolder,
    values: Point,
    e_steps: "ActorHandle",
    watch: Callable[[int], Sequence["UserCallback"]],
) -> TrialRecord:
    """E-step, M-step and evaluation at one point; continues where an earlier start of the same trial ended.

    `e_steps` is the `EStep` actor; `watch` returns the Ray Train callbacks of a cycle. Returns the trial's record.
    """
    import ray

    folder = folder_of(job, values)
    write_record(job, TrialRecord(status="running", values=values))
    trial = em_job(job, values, folder / "em")

    def e_step(step: AssignJob, step_model: ModelFolder) -> int:
        """Other trials may share the first E-step. Later ones use the model of this trial, so nothing is shared."""
        if step_model is not model:
            return assign.run(step, step_model)
        return int(ray.get(e_steps.make.remote(step, step_model)))

    em.run(trial, e_step, watch, model)
    summary = EmSummary.read(folder / "em" / EM_SUMMARY)
    trained = ModelFolder.open(summary.model).at(model.image_size)
    models = {"base": job.model, "trial": trained.path}
    assigned = folder / "em" / cycle_name(1) / "assignments"
    judge = judge_job(job, models, folder / "evaluation", evaluation_of(job), assigned)
    with of_step("evaluate", EvaluateSettings):
        evaluate.run(judge, {"base": model, "trial": trained})
    cycles = summary.cycles
    record = TrialRecord(
        status="finished",
        values=values,
        metrics=Evaluation.read(folder / "evaluation" / EVALUATION).metrics["trial"],
        model=str(trained.path),
        model_fingerprint=trained.fingerprint,
        assignments=cycles[0].assign.run_fingerprint,
        quarantined=cycles[0].assign.quarantined,
        evaluations=tuple(cycle.assign.all_evaluations for cycle in cycles),
        updates=sum(cycle.train.updates for cycle in cycles),
        train_seconds=sum(cycle.train.seconds_this_run for cycle in cycles),
        curve=curve_of(cycles),
    )
    return write_record(job, record)


def stage_of(job: SweepJob, values: Point) -> str:
    """The step that a running trial is at, from the files that it has written so far."""
    folder = folder_of(job, values)
    if (folder / "evaluation" / PLAN_FILE).is_file():
        return "evaluation"
    cycles = sorted((folder / "em").glob("cycle_*"))
    if not cycles:
        return "waits"
    number = f"cycle {len(cycles)}, " if job.cycles > 1 else ""
    training, assigning = cycles[-1] / "train", cycles[-1] / "assignments"
    if (training / PLAN_FILE).is_file():
        updates = read_plan(open_store(training), TrainPlan).updates
        return f"{number}M-step {last_logged(training / HISTORY)[0]}/{updates}"
    if (assigning / PLAN_FILE).is_file():
        shards = read_plan(open_store(assigning), ReconstructionPlan).shards
        made = sum(1 for _ in assigning.glob("part-*.parquet"))
        return f"{number}E-step {made}/{shards} shards"
    return f"{number}waits for the E-step"


def evaluation_of(job: SweepJob) -> Path:
    """The folder of the evaluation of the references."""
    return job.work_dir / REFERENCES / "evaluation"


def references_of(job: SweepJob) -> ModelEstimates | None:
    """The figures of the references; None if these are not judged yet."""
    file = evaluation_of(job) / EVALUATION
    return Evaluation.read(file).metrics if file.is_file() else None


def curve_of(cycles: Sequence[Cycle]) -> tuple[CurvePoint, ...]:
    """The held-out error after each epoch, counted over all cycles; empty if nothing was validated."""
    curve = []
    for done, cycle in enumerate(cycles):
        epochs, updates = len(cycle.train.epochs), cycle.train.updates
        for entry in cycle.train.validations:
            if entry["update"]:
                epoch = done * epochs + entry["update"] / updates * epochs
                curve.append(CurvePoint(epoch=epoch, validation_latent=entry["latent"]))
    return tuple(curve)
