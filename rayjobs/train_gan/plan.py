"""The plan of `ortho train-gan`."""

from typing import ClassVar, Literal

from ortho_core.generators.class_config import ClassConfig
from rayjobs.training.plan import TrainingPlan


class TrainGanPlan(TrainingPlan):
    """Training of a small generator on labelled images."""

    verb: ClassVar[str] = "train-gan"

    kind: Literal["train-gan"] = "train-gan"
    generator: ClassConfig
    #: Rows whose label is not one of the classes.
    bad_rows: int
