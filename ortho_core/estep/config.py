"""What decides a search, besides the row, its noise seed and the model."""

from math import ceil
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import decides

#: Forwards alone that count as one evaluation.
FORWARDS_PER_EVALUATION = 3
#: Evaluations that measuring the generator takes.
MEASURED_WITH = 32

#: Not typing.Self, which a checker of shapes in tests does not know on methods.
Search = TypeVar("Search", bound="SearchConfig")
Assign = TypeVar("Assign", bound="AssignConfig")


class SearchConfig(BaseModel):
    """How noise is searched for: where, for how long, by which optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transform: Literal["orthogonal", "free"] = decides(
        "orthogonal", description="orthogonal: rotate the patches; free: any noise under a Gaussian prior"
    )
    patch_size: int = decides(
        2,
        ge=1,
        description="side p of the latent patches that one orthogonal matrix rotates (free: patches of the diagnostics)",
    )
    regions: int = decides(1, ge=1, description="g: one orthogonal matrix for each cell of a g×g grid of the latent")
    steps: int = decides(12, ge=1, description="evaluations (generator forward + backward) that an image may take")
    patience: int = decides(
        4, ge=0, description="lbfgs: an image leaves once this many evaluations gained nothing (0: never)"
    )
    stop_tolerance: float = decides(
        5e-3, ge=0, description="lbfgs: a gain of this part of its loss or less counts as nothing"
    )
    optimizer: Literal["lbfgs", "adamw"] = decides("lbfgs", description="lbfgs, or adamw as in the reference method")
    lr: float = decides(5e-4, gt=0, description="learning rate of adamw (lbfgs finds its own step size)")
    sensitivity_rank: int = decides(
        4, ge=0, description="lbfgs: noise directions of the generator's first curvature model (0: none)"
    )
    drift_reg_weight: float = decides(0.0, ge=0, description="weight of mean((Qε - ε)²)")
    prior_weight: float = decides(0.5, ge=0, description="free: weight of the Gaussian prior (norm and whiteness)")

    @property
    def measures(self) -> bool:
        """Whether the search wants to know what the generator answers to."""
        return self.optimizer == "lbfgs" and self.sensitivity_rank > 0

    @property
    def passes(self) -> int:
        """Passes of the generator, forward alone or with backward, that an image may take."""
        return self.steps

    def brief(self: Search, steps: int) -> Search:
        """The same search, of so many evaluations for every image and no other work: to measure its time and memory."""
        return self.model_copy(update={"steps": steps, "patience": 0, "sensitivity_rank": 0})


class ReconstructionWeights(BaseModel):
    """Weights of the reconstruction terms; a term of weight 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_loss_weight: float = decides(1.0, ge=0, description="weight of mean((f(Qε,c) - E(x))²), in latent units")
    pixel_l1_weight: float = decides(0.0, ge=0, description="weight of mean|D(f(Qε,c)) - x|, images in [0, 1]; decodes")


class AssignConfig(ReconstructionWeights, SearchConfig):
    """How the E-step searches, and for what."""

    candidates: int = decides(
        1,
        ge=1,
        description="K: base noises drawn for an image and run forward; the search starts from the best "
        "(a warm start keeps the one it had)",
    )

    def brief(self: Assign, steps: int) -> Assign:
        return super().brief(steps).model_copy(update={"candidates": 1})

    @property
    def passes(self) -> int:
        return self.steps + self.candidate_forwards

    @property
    def candidate_forwards(self) -> int:
        """Forwards that choose an image's base noise: K, and none where there is no choice."""
        return self.candidates if self.candidates > 1 else 0

    def evaluations_at_most(self, rows: int, draws: int = 1) -> int:
        """What so many images may take, the forwards of their candidates among it; those are drawn `draws` times."""
        return rows * self.steps + ceil(rows * draws * self.candidate_forwards / FORWARDS_PER_EVALUATION)
