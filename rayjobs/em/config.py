"""The options of `ortho em`."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from ortho_core.pairs import PairFields
from ortho_core.storage.store import Location
from rayjobs.assign.config import AssignSettings
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.train.config import TrainSettings


class EmJob(PairFields):
    """Alternate E-step and M-step over a pair set, evaluate on held-out pairs, write a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: Location = Field(
        description="pair set: pairs.jsonl, Parquet, WebDataset tars or an imagefolder; path or URL"
    )
    heldout: Location | None = Field(None, description="held-out pair set for the evaluation (default: no evaluation)")
    model: Path = Field(description="model folder to start from")
    work_dir: Path = Field(description="folder for everything the run makes; the same command again resumes")
    assignments_cache: Path | None = Field(
        None,
        description="folder that keeps assignments for other runs of the same pairs, model and settings (none: work_dir)",
    )
    cycles: int = Field(2, ge=1, description="how often E-step and M-step alternate")
    warm_start: bool = Field(True, description="each E-step starts from the noise that the cycle before assigned")
    baseline: bool = Field(False, description="also train direct SFT on random noise for as many updates, to compare")
    preserve_to: Literal["first", "last"] = Field(
        "first", description="model that the preserve terms hold to: the run's first, or the one its cycle starts from"
    )
    validate_on_heldout: bool = Field(
        False, description="assign the held-out pairs with the first model too, and watch every M-step on them"
    )
    assign: AssignSettings = AssignSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
