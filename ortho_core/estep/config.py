"""The options that decide a search, besides the row, its noise seed and the model."""

from math import ceil
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import decides

#: Number of forwards without a backward that count as one evaluation.
FORWARDS_PER_EVALUATION = 3
#: Number of evaluations that measure the generator's sensitivity.
MEASURED_WITH = 32

#: Not typing.Self: the shape checker of the tests does not support it on methods.
Search = TypeVar("Search", bound="SearchConfig")
Assign = TypeVar("Assign", bound="AssignConfig")


class SearchConfig(BaseModel):
    """How the noise is searched: in which space, for how long, with which optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transform: Literal["orthogonal", "free"] = decides(
        "orthogonal", description="orthogonal: rotate the patches; free: any noise under a Gaussian prior"
    )
    patch_size: int = decides(
        2,
        ge=1,
        description="side p of the latent patches, which one orthogonal matrix rotates (free: only for the diagnostics)",
    )
    regions: int = decides(1, ge=1, description="g: one orthogonal matrix for each cell of a g×g grid over the latent")
    steps: int = decides(12, ge=1, description="evaluations (generator forward + backward) per image, at most")
    patience: int = decides(
        4, ge=0, description="lbfgs: stop an image after this many evaluations without improvement (0: never)"
    )
    stop_tolerance: float = decides(
        5e-3, ge=0, description="lbfgs: a relative decrease of the loss up to this counts as no improvement"
    )
    optimizer: Literal["lbfgs", "adamw"] = decides("lbfgs", description="lbfgs, or adamw as in the reference method")
    lr: float = decides(5e-4, gt=0, description="learning rate of adamw (lbfgs finds its own step size)")
    sensitivity_rank: int = decides(
        4, ge=0, description="lbfgs: number of measured sensitivity directions that the search starts from (0: none)"
    )
    drift_reg_weight: float = decides(0.0, ge=0, description="weight of mean((Qε - ε)²)")
    prior_weight: float = decides(0.5, ge=0, description="free: weight of the Gaussian prior (norm and whiteness)")

    @property
    def measures(self) -> bool:
        """Whether the search needs the generator's sensitivity."""
        return self.optimizer == "lbfgs" and self.sensitivity_rank > 0

    @property
    def passes(self) -> int:
        """Largest number of generator passes per image; a forward without a backward counts as one pass."""
        return self.steps

    def brief(self: Search, steps: int) -> Search:
        """The same search with exactly `steps` evaluations per image and no other work: to measure its time and memory."""
        return self.model_copy(update={"steps": steps, "patience": 0, "sensitivity_rank": 0})


class ReconstructionWeights(BaseModel):
    """Weights of the reconstruction terms; a term of weight 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_loss_weight: float = decides(1.0, ge=0, description="weight of mean((f(Qε,c) - E(x))²), in latent units")
    pixel_l1_weight: float = decides(0.0, ge=0, description="weight of mean|D(f(Qε,c)) - x|, images in [0, 1]; decodes")


class AssignConfig(ReconstructionWeights, SearchConfig):
    """The options of the E-step: the search and its objective."""

    candidates: int = decides(
        1,
        ge=1,
        description="K: base noises drawn per image; one forward each, the search starts from the best "
        "(a warm start keeps its earlier base noise)",
    )

    def brief(self: Assign, steps: int) -> Assign:
        return super().brief(steps).model_copy(update={"candidates": 1})

    @property
    def passes(self) -> int:
        return self.steps + self.candidate_forwards

    @property
    def candidate_forwards(self) -> int:
        """Number of forwards that choose an image's base noise: K, or 0 for one candidate."""
        return self.candidates if self.candidates > 1 else 0

    def evaluations_at_most(self, rows: int, draws: int = 1) -> int:
        """Largest number of evaluations for `rows` images, with the forwards of their candidates, drawn `draws` times."""
        return rows * self.steps + ceil(rows * draws * self.candidate_forwards / FORWARDS_PER_EVALUATION)
