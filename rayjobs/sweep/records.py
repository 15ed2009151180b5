"""What a sweep keeps in JSON: `trial.json` in the folder of each trial, and `sweep_summary.json`."""

from typing import Literal, TypedDict

from pydantic import JsonValue

from rayjobs.sweep.space import Point

Status = Literal["running", "stopped", "failed", "finished"]
#: The figures of one model by name, each with "value", "low", "high" and "count".
Figures = dict[str, dict[str, float]]


class Watched(TypedDict):
    """The held-out error after so many epochs, counted over all cycles."""

    epoch: float
    validation_latent: float


class Outcome(TypedDict, total=False):
    """What a trial gave."""

    metrics: Figures
    curve: list[Watched]
    #: Of a failed trial.
    error: str
    #: The rest are of a finished trial.
    model: str
    model_fingerprint: str
    #: The fingerprint of the first cycle's E-step.
    assignments: str
    quarantined: int
    #: By cycle.
    evaluations: list[int]
    updates: int
    train_seconds: float


class TrialRecord(Outcome):
    """How a trial stands."""

    status: Status
    values: Point


class Conclusion(TypedDict):
    """What the trials gave together."""

    #: Short names of the fields that vary.
    fields: dict[str, str]
    #: The figure of target fit, and the limit of drift.
    metric: str
    max_drift: float | None
    #: The figures of the base model, and of direct SFT.
    references: dict[str, Figures]
    trials: dict[str, TrialRecord]
    #: The best fit first.
    front: list[str]
    chosen: str | None
    model: str | None


class SweepSummary(Conclusion):
    """`sweep_summary.json`, which also has the versions of packages."""

    seconds_this_run: float
    config: dict[str, JsonValue]
