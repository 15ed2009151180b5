"""The settings of a fit (`ortho train-gan`)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from ortho_core.marks import decides

#: Default number of candidate noises per group.
NEAREST_OF = 64


class FitConfig(BaseModel):
    """How a generator is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Literal["imle", "gan"] = decides(
        "imle",
        description="imle: match each image to the nearest of several outputs and regress on it, which keeps diversity; gan: "
        "hinge loss with a projection discriminator",
    )
    nearest_of: int | None = decides(
        None, ge=1, description="imle: candidate noises per group, of which each image uses the nearest (none: 64)"
    )
    group_size: int = decides(
        16, ge=1, description="images of one class per group; they share the group's candidate noises"
    )
    lr: float | None = decides(
        None,
        gt=0,
        description="highest learning rate; the gan's discriminator uses twice this (none: imle 2e-3, gan 2e-4)",
    )

    @model_validator(mode="after")
    def _applies(self) -> "FitConfig":
        if self.objective == "gan" and self.nearest_of is not None:
            raise ValueError("nearest_of applies to --objective imle; a gan draws one noise per image: leave it out")
        if self.nearest_of is not None and self.nearest_of < self.group_size:
            raise ValueError(f"nearest_of is less than the {self.group_size} images of a group (--group-size)")
        return self

    @property
    def noises(self) -> int:
        """J, the noises per group; for a gan one per image for each of its two steps."""
        return 2 * self.group_size if self.objective == "gan" else self.nearest_of or NEAREST_OF

    @property
    def rate(self) -> float:
        return self.lr or {"imle": 2e-3, "gan": 2e-4}[self.objective]
