"""The summary files of finished runs, as typed records. Fields that no reader needs are left out."""

import json
from math import ceil
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ortho_core.errors import UserError, needed
from ortho_core.estep.config import FORWARDS_PER_EVALUATION
from ortho_core.evaluation.metrics import Estimate
from ortho_core.noise.gaussianity import Covariance, KsTest
from ortho_core.records.plan import Settings
from ortho_core.storage.receipts import REMEDY, FileReceipt
from ortho_core.text.parsing import parse_model, regular_bytes
from ortho_core.text.plain_text import redacted_all
from rayjobs.verb.console import versions

R = TypeVar("R", bound="Record")

#: Names of the files.
EVALUATION, EM_SUMMARY, SWEEP_SUMMARY = "evaluation.json", "em_summary.json", "sweep_summary.json"

#: By model, then by the metric's name.
ModelEstimates = dict[str, dict[str, Estimate]]


class Record(BaseModel):
    """The content of a JSON file; other keys than the fields are ignored."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def read(cls: type[R], file: Path) -> R:
        """Raises UserError for a file that cannot be read or holds anything else."""
        try:
            content = regular_bytes(file)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or error}") from error
        return cls.parse(content, str(file))

    @classmethod
    def parse(cls: type[R], content: bytes, where: str) -> R:
        """From the content of the file `where`. Raises UserError if it is anything else."""
        return needed(parse_model, cls, content, where, remedy=REMEDY)

    def text(self) -> str:
        """The file's text."""
        return json.dumps(redacted_all(self.model_dump(mode="json")), indent=1) + "\n"


class Made(Record):
    """A summary with the configuration and the versions of the run."""

    config: Settings
    versions: dict[str, str] = Field(default_factory=versions)

    def option(self, name: str) -> str:
        """An option's value, as a report names it."""
        return str(self.config[name])


class AssignSummary(Record):
    """`summary.json` of an E-step."""

    rows: int
    assigned: int
    quarantined: int
    quarantined_by_reason: dict[str, int]
    truncated_prompts: int = 0
    evaluations: int
    candidate_forwards: int = 0
    mean_initial_loss: float | None
    mean_loss: float | None
    gaussianity: str = ""
    rows_this_run: int
    seconds_this_run: float
    rows_per_second: float | None
    run_fingerprint: str

    @property
    def all_evaluations(self) -> int:
        """Evaluations, with the forwards of candidates converted to evaluations."""
        return self.evaluations + ceil(self.candidate_forwards / FORWARDS_PER_EVALUATION)


class AssignmentRun(AssignSummary, Made):
    """`summary.json` with configuration, versions, and how the pairs were read (with the files that were left aside)."""

    recognised: Settings


class GaussianCheck(Record):
    """`orthogonal_gaussian_init.json` or `_final.json`."""

    patches: int
    dimension: int
    marginal: KsTest
    covariance: Covariance
    #: In null standard deviations, largest first.
    departures: dict[str, float]
    verdict: str


class BeforeAfter(Record):
    """A reward at the base noise and at the optimised noise."""

    before: float
    after: float


class RewardGain(BeforeAfter):
    """Mean rewards over all prompts, the share of prompts whose reward rose, and the mean gain."""

    improved: float
    gain: Estimate


class RewardSummary(AssignSummary, Made):
    """`summary.json` of a search for the highest rewards, over a file of prompts."""

    rewards: dict[str, RewardGain]


class OnePromptSearch(Made):
    """`meta.json` of a search for the highest rewards of one prompt."""

    prompt: str
    evaluations: int
    best_evaluation: int
    rewards: dict[str, BeforeAfter]
    #: The weight of each optimised reward.
    optimised: dict[str, float]
    #: The value of each term at every evaluation.
    history: dict[str, list[float]]
    seconds_this_run: float


class SkippedUpdate(Record):
    """An update that was not applied, and the rows that may be the cause."""

    update: int
    rows: list[str]


class TrainSummary(Record):
    """`train_summary.json` of an M-step. A loss that was not finite is None."""

    rows: int
    updates: int
    #: For each epoch, the mean of each loss term.
    epochs: list[dict[str, float | None]]
    best_epoch: int
    best_loss: float | None
    final_loss: float | None
    #: For each validation, the update and the figures.
    validations: list[dict[str, float]]
    skipped_updates: list[SkippedUpdate]
    tracker_failures: list[str]
    #: Evaluations of the search for noise between the updates.
    match_evaluations: int = 0
    #: Fingerprint of the files that the model was loaded from.
    loaded_fingerprint: str | None = None
    images_per_second: float | None
    seconds_this_run: float
    run_fingerprint: str


class Cycle(Record):
    """The two steps of a cycle of EM."""

    cycle: int
    assign: AssignSummary
    train: TrainSummary

    @property
    def name(self) -> str:
        """The name of the cycle's folder, and of its model in the evaluation."""
        return cycle_name(self.cycle)


class EmSummary(Made):
    """`em_summary.json`."""

    #: The fine-tuned model's folder.
    model: str
    cycles: list[Cycle]
    evaluation: ModelEstimates | None
    #: How many of the judged held-out images are training images too.
    heldout_in_training: int | None = None
    #: How the pairs and the held-out pairs were read, and which files were left aside.
    recognised: Settings | None = None
    recognised_heldout: Settings | None = None
    seconds_this_run: float


class FeatureSource(Record):
    """The model whose features a figure is computed from."""

    name: str
    fingerprint: str
    dimension: int


class FeatureSources(FeatureSource):
    """The feature model of most figures, and that of CMMD."""

    cmmd: FeatureSource


class Evaluation(Made):
    """`evaluation.json`."""

    #: The model that the others started from, one of `metrics`.
    base: str
    rows: int
    quarantined: int
    #: How the held-out pairs were read, and which files were left aside.
    recognised: Settings | None = None
    #: How many rows show a training image; None: not counted.
    in_training: int | None = None
    metrics: ModelEstimates
    #: If the images have several sizes: the figures of single images of each size (`WIDTHxHEIGHT`) that has enough rows.
    by_size: dict[str, ModelEstimates] = {}
    features: FeatureSources
    #: The fingerprint of each reward's weights, by name.
    rewards: dict[str, str]
    #: (Y, X) of a cell of the contact sheets: the size of the images, or the largest sides of several sizes.
    image_size: tuple[int, int]
    evaluations_per_image: int
    #: Receipts of the other files of the run.
    files: dict[str, FileReceipt] = {}
    #: None where no row was judged in the last start.
    seconds_this_run: float | None = None

    def flattery(self) -> str:
        """A warning if some of the judged images were trained on, else nothing."""
        if not self.in_training:
            return ""
        are = "is also a training image" if self.in_training == 1 else "are also training images"
        return f"{self.in_training} of the {self.rows} held-out images {are}, so the figures look too good"

    @property
    def evaluations(self) -> int:
        """Evaluations of all models."""
        return self.rows * self.evaluations_per_image * len(self.metrics)


def cycle_name(cycle: int) -> str:
    """The folder of a cycle of EM, counted from 1."""
    return f"cycle_{cycle:02d}"
