"""The options of `ortho em`."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, model_validator

from ortho_core.framing.framing import Framing
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.hold_out import SHARE
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import ModelPath, OutputPath, PairsLocation, Place
from rayjobs.assign.config import AssignSettings
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.train.config import TrainSettings
from rayjobs.verb.image_size import BucketSettings, framing_of
from rayjobs.verb.prompt_embeddings import PromptEmbeddings

#: Values of `--heldout`: no pairs, and the default number of pairs.
NO_HELDOUT, USUAL_HELDOUT = "none", "auto"


def _as_text(value: object) -> object:
    """YAML gives a number of rows as an int, and `none` as None: both become text."""
    if value is None:
        return NO_HELDOUT
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


#: Another pair set, a share of the pairs, or none.
Heldout = Annotated[
    str,
    Place(names=f"{NO_HELDOUT}|{USUAL_HELDOUT}|{SHARE}", role="source", existing_first=True),
    BeforeValidator(_as_text),
]


class EStepSettings(AssignSettings):
    """How the E-steps of EM run; they are short, because the next cycle repeats the search with its model."""

    steps: int = decides(4, ge=1, description="most evaluations (generator forward + backward) of an image")

    @model_validator(mode="before")
    @classmethod
    def _as_fields(cls, value: object) -> object:
        """Settings of `ortho assign` are accepted as settings of an E-step."""
        return value.model_dump() if type(value) is AssignSettings else value


class EmJob(PairFields, BucketSettings, PromptEmbeddings):
    """Alternate E-step and M-step over a pair set, evaluate on held-out pairs, write a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: PairsLocation = resolved(
        description="pair set: a folder of images with captions, or files of rows (docs/guides/pair-sets.md); path or URL"
    )
    heldout: Heldout = resolved(
        USUAL_HELDOUT,
        description="pairs to judge on, not trained on: a share of the pairs such as 5%, a number of rows, another pair set "
        "(path or URL), or none; auto: 5% of the pairs, at least 16 and at most --evaluate.rows rows, never more than a fifth",
    )
    model: ModelPath = resolved(description="model folder to start from")
    work_dir: OutputPath = conduct(description="folder for all files of the run; the same command again resumes")
    assignments_cache: OutputPath | None = conduct(
        None,
        description="folder that keeps assignments for other runs of the same pairs, model and settings (none: work_dir)",
    )
    cycles: int = decides(4, ge=1, description="how often E-step and M-step alternate")
    warm_start: bool = decides(
        False, description="start each E-step from the noise that the cycle before assigned, not from fresh noise"
    )
    baseline: bool = decides(
        False, description="also train direct SFT on random noise, with as many updates, to compare"
    )
    preserve_to: Literal["first", "last"] = decides(
        "first", description="model that the preserve terms stay close to: the run's first model, or the cycle's"
    )
    validate_on_heldout: bool = decides(
        False, description="also assign the held-out pairs with the first model, and validate every M-step on them"
    )
    gpu_memory: float | None = conduct(
        None,
        gt=0,
        description="plan every step for a GPU of this many GiB; with --dry-run the machine needs no such GPU",
    )
    assign: EStepSettings = EStepSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def framing(self, model: ModelFolder) -> Framing:
        """The sizes of the images. Raises UserError as `framing_of` does."""
        return framing_of(self, model, self.assign.patch_size * self.assign.regions, self.assign.seed)

    @property
    def share(self) -> str | None:
        """The share of the pairs that is held out."""
        return self.heldout if re.fullmatch(SHARE, self.heldout) else None

    @property
    def heldout_place(self) -> str | None:
        """Where the held-out pairs are; None if there are none, or if `auto` is not worked out yet."""
        if self.share is not None:
            return self.pairs
        return None if self.heldout in (NO_HELDOUT, USUAL_HELDOUT) else self.heldout

    def training_fields(self) -> PairFields:
        """How the training pairs are read."""
        part = self.part if self.share is None else f"training:{self.share}"
        return self.pair_fields().model_copy(update={"part": part})

    def heldout_fields(self) -> PairFields:
        """How the held-out pairs are read. In another pair set, `split` and `part` of this job do not apply."""
        if self.share is not None:
            return self.pair_fields().model_copy(update={"part": f"heldout:{self.share}"})
        return self.pair_fields().model_copy(update={"split": None, "part": None})
