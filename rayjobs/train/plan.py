"""The plan of `ortho train`."""

from typing import ClassVar, Literal

from rayjobs.training.plan import TrainingPlan


class TrainPlan(TrainingPlan):
    """Fine-tuning of a model on assignments or on pairs."""

    verb: ClassVar[str] = "train"

    kind: Literal["train"] = "train"
    #: Fingerprint of the run that made the assignments; None: trained on pairs alone.
    assignments: str | None
    model_fingerprint: str
    #: Fingerprint of the model that the preserve terms stay close to.
    preserve_fingerprint: str
    #: Fingerprints of the prompts of the preserve terms, and of the run that assigned the held-out rows.
    preserve_prompts: str
    validation: str | None
