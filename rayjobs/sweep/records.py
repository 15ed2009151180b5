"""The files of a sweep: a record of each trial, and the summary of all trials."""

from typing import Literal

from pydantic import Field

from ortho_core.evaluation.metrics import Estimate
from rayjobs.reports.summaries import Made, ModelEstimates, Record
from rayjobs.sweep.space import Point
from rayjobs.verb.console import versions

#: The folder of the models that trials are compared with: the base model and direct SFT.
REFERENCES = "references"


class CurvePoint(Record):
    """The held-out error after an epoch, counted over all cycles."""

    epoch: float
    validation_latent: float


class TrialRecord(Record):
    """`trial.json`: the status of a trial, and the results and cost of a finished one.

    A `stopped` trial was ended early. The next start continues `running` trials and repeats `failed` ones.
    """

    status: Literal["running", "finished", "stopped", "failed"]
    values: Point
    metrics: dict[str, Estimate] = Field(default={})
    curve: tuple[CurvePoint, ...] = ()
    #: Why a trial failed.
    error: str = ""
    #: The folder of the fine-tuned model.
    model: str = ""
    model_fingerprint: str = ""
    #: Fingerprint of the run that made the assignments of the first cycle, and the number of rows in its quarantine.
    assignments: str = ""
    quarantined: int = 0
    #: Evaluations of the E-step of each cycle.
    evaluations: tuple[int, ...] = ()
    updates: int = 0
    train_seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=versions)


class SweepSummary(Made):
    """`sweep_summary.json`."""

    #: The varied fields, each with its short name in the report.
    fields: dict[str, str]
    #: The metric of target fit.
    metric: str
    max_drift: float | None
    #: Figures of the base model and of direct SFT, which every trial is compared with.
    references: ModelEstimates
    trials: dict[str, TrialRecord]
    #: Names of the trials on the Pareto front, the best fit first.
    front: list[str]
    #: The trial with the best fit among those with at most `max_drift`, and its model.
    chosen: str | None
    model: str | None
    seconds_this_run: float

    @property
    def finished(self) -> dict[str, TrialRecord]:
        return {name: trial for name, trial in self.trials.items() if trial.status == "finished"}
