"""The plan of an evaluation, and the base model's parts that it can reuse from another evaluation."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from ortho_core.errors import UserError
from ortho_core.evaluation.rows import EVALUATION_SCHEMA
from ortho_core.records.plan import Settings, ShardedPlan, differences, read_plan
from ortho_core.storage.open import open_store
from rayjobs.pool.ledger import Ledger

#: Folder of the part files, in the job's folder.
PARTS = "parts"


class ExtractorUsed(BaseModel):
    """The model whose features a figure is computed from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str


class JudgesUsed(BaseModel):
    """Which networks judge the images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: ExtractorUsed
    cmmd_features: ExtractorUsed
    #: The fingerprint of each reward's weights, by name.
    rewards: dict[str, str]
    lpips: str | None

    def by_option(self) -> dict[str, str]:
        """Fingerprints, by the names that messages use for the files."""
        features = {"features": self.features, "cmmd-features": self.cmmd_features}
        return {
            **{f"the model of --{option} {used.name}": used.fingerprint for option, used in features.items()},
            **{f"reward {name}": value for name, value in self.rewards.items()},
            **({} if self.lpips is None else {"the file of --lpips": self.lpips}),
        }


class EvaluationPlan(ShardedPlan):
    """Models judged on the same held-out rows. A task is a shard of one model: number m·S + s for shard s of S and model m."""

    verb: ClassVar[str] = "evaluate"

    kind: Literal["evaluation"] = "evaluation"
    #: The model that drift is measured against, one of `models`.
    base: str
    #: The fingerprint of each, by name; the base is the first.
    models: dict[str, str] = Field(min_length=1)
    features: ExtractorUsed
    cmmd_features: ExtractorUsed
    #: The fingerprint of each reward's weights, by name.
    rewards: dict[str, str]
    lpips: str | None
    config: Settings
    diversity_prompts: tuple[str, ...]
    heldout_rows: int

    @property
    def part_schema(self) -> pa.Schema:
        return EVALUATION_SCHEMA

    @property
    def shards_per_model(self) -> int:
        return self.shards // len(self.models)

    @property
    def own_cmmd(self) -> bool:
        """Whether CMMD has another feature model than the other figures."""
        return self.features.fingerprint != self.cmmd_features.fingerprint

    def judges(self) -> JudgesUsed:
        """Which networks judge."""
        return JudgesUsed(
            features=self.features, cmmd_features=self.cmmd_features, rewards=self.rewards, lpips=self.lpips
        )

    def judging(self) -> dict[str, Any]:
        """The settings of the judging that do not depend on the models."""
        return self.model_dump(
            mode="json", include={"config", "heldout_rows", "features", "cmmd_features", "rewards", "lpips"}
        )

    def of_the_base(self) -> dict[str, Any]:
        """What the base model's parts depend on."""
        content = self.model_dump(mode="json", exclude={"models", "base", "rows", "shards"})
        return content | {"shards": self.shards_per_model, "model": self.models.get(self.base)}


def take_base_from(other: Path, ledger: Ledger[EvaluationPlan]) -> None:
    """Copy the base model's parts from another evaluation. Raises UserError if that was judged differently."""
    try:
        theirs = read_plan(open_store(other), EvaluationPlan)
    except (OSError, UserError) as error:
        raise UserError(f"--base-from {other} is not an evaluation that this version can use: {error}") from error
    if differing := differences(theirs.of_the_base(), ledger.plan.of_the_base()):
        raise UserError(f"--base-from {other} was judged with other settings: " + "; ".join(differing))
    parts = open_store(other).child(PARTS)
    for shard in range(ledger.plan.shards_per_model):
        name = theirs.part_name(shard)
        if not ledger.folder.exists(ledger.name(shard)) and parts.exists(name):
            ledger.folder.create(ledger.name(shard), parts.read(name))
