"""What a sweep keeps: a record of each trial, and the summary of them all."""

from typing import Literal

from pydantic import Field

from ortho_core.evaluation.metrics import Estimate
from rayjobs.reports.summaries import Made, ModelEstimates, Record
from rayjobs.sweep.space import Point
from rayjobs.verb.console import versions

#: The folder of the models that trials are compared with.
REFERENCES = "references"


class CurvePoint(Record):
    """The held-out error after an epoch, counted over all cycles."""

    epoch: float
    validation_latent: float


class TrialRecord(Record):
    """`trial.json`: how a trial stands, and of a finished one what it gave and cost.

    A stopped trial was ended early; `running` and `failed` ones are to be run, again or on.
    """

    status: Literal["running", "finished", "stopped", "failed"]
    values: Point
    metrics: dict[str, Estimate] = Field(default={})
    curve: tuple[CurvePoint, ...] = ()
    #: Of a failed trial, the reason.
    error: str = ""
    #: The folder of the fine-tuned model.
    model: str = ""
    model_fingerprint: str = ""
    #: The run that made the assignments of its first cycle, and the rows that it quarantined.
    assignments: str = ""
    quarantined: int = 0
    #: Evaluations of the E-step of each cycle.
    evaluations: tuple[int, ...] = ()
    updates: int = 0
    train_seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=versions)


class SweepSummary(Made):
    """`sweep_summary.json`."""

    #: The fields that are varied, each with the name that the report calls it by.
    fields: dict[str, str]
    #: The figure of target fit.
    metric: str
    max_drift: float | None
    #: The base model and direct SFT, which every trial is compared with.
    references: ModelEstimates
    trials: dict[str, TrialRecord]
    #: Names of the trials on the Pareto front, the best fit first.
    front: list[str]
    #: The trial with the best fit that drifts no further than `max_drift`, and its model.
    chosen: str | None
    model: str | None
    seconds_this_run: float

    @property
    def finished(self) -> dict[str, TrialRecord]:
        return {name: trial for name, trial in self.trials.items() if trial.status == "finished"}
