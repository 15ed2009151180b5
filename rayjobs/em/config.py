"""The options of `ortho em`."""

from typing import Literal

from pydantic import ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs import PairFields
from ortho_core.storage.location import ModelPath, OutputPath, PairsLocation
from rayjobs.assign.config import AssignSettings
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.train.config import TrainSettings


class EmJob(PairFields):
    """Alternate E-step and M-step over a pair set, evaluate on held-out pairs, write a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: PairsLocation = resolved(
        description="pair set: a folder of images with captions, or files of rows (docs/pair-sets.md); path or URL"
    )
    heldout: PairsLocation | None = resolved(
        None, description="held-out pair set for the evaluation (default: no evaluation)"
    )
    model: ModelPath = resolved(description="model folder to start from")
    work_dir: OutputPath = conduct(description="folder for everything the run makes; the same command again resumes")
    assignments_cache: OutputPath | None = conduct(
        None,
        description="folder that keeps assignments for other runs of the same pairs, model and settings (none: work_dir)",
    )
    cycles: int = decides(2, ge=1, description="how often E-step and M-step alternate")
    warm_start: bool = decides(True, description="each E-step starts from the noise that the cycle before assigned")
    baseline: bool = decides(False, description="also train direct SFT on random noise for as many updates, to compare")
    preserve_to: Literal["first", "last"] = decides(
        "first", description="model that the preserve terms hold to: the run's first, or the one its cycle starts from"
    )
    validate_on_heldout: bool = decides(
        False, description="assign the held-out pairs with the first model too, and watch every M-step on them"
    )
    assign: AssignSettings = AssignSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def heldout_fields(self) -> PairFields:
        """How the held-out set is read, which is at a place of its own: a split is one of the other set."""
        return self.pair_fields().model_copy(update={"split": None})
