"""The plan of `ortho train-gan`."""

from typing import ClassVar, Literal

from ortho_core.generators.class_config import ClassConfig
from rayjobs.training.plan import TrainingPlan


class TrainGanPlan(TrainingPlan):
    """A small generator of labelled images."""

    verb: ClassVar[str] = "train-gan"

    kind: Literal["train-gan"] = "train-gan"
    generator: ClassConfig
    #: Rows whose label is none of the classes.
    bad_rows: int
