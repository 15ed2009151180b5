"""Plans: everything that decides a run's result, typed and frozen, stored as `plan.json` in the run's output folder.

Every verb that can resume has its kind of plan. This module has the plans of assignments, which `ortho assign`, `ortho reward`
and `ortho import` write; readers of assignments read the plan first. The other kinds are next to their verbs.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ortho_core.errors import UserError, needed
from ortho_core.framing.frame import Size
from ortho_core.framing.framing import SIZE_SETTINGS, Framing
from ortho_core.records.parts import HALF_SCHEMA, PART, REWARD_FIELDS, SCHEMA, part_name
from ortho_core.storage.store import Store, TooLarge
from ortho_core.text.parsing import NotParsedError, model_of, parse_json, shown

#: Bump when the meaning of a plan or of the files it describes changes.
FORMAT = 5

PLAN_FILE = "plan.json"
#: Largest size of the file; a plan with thousands of prompts has a megabyte.
MOST_PLAN_BYTES = 64 << 20

#: The key of the fingerprint in the file, besides the fields.
FINGERPRINT = "run_fingerprint"

#: Settings that decide a result, as JSON by the name of the option. They are only compared and shown.
Settings = dict[str, JsonValue]

AnyPlan = TypeVar("AnyPlan", bound="Plan")


def fingerprint(content: object) -> str:
    """SHA-256 (16 hex digits) of JSON-ready content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Plan(BaseModel):
    """Everything that decides the result of a run: two runs with equal plans give equal results."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: The verb that makes and follows plans of this kind.
    verb: ClassVar[str]

    format: int = FORMAT
    kind: str

    def content(self) -> Settings:
        """The fields, JSON-ready."""
        return self.model_dump(mode="json")

    @property
    def run_fingerprint(self) -> str:
        """The fingerprint of the content. It is in the names of part files; summaries and other plans refer to the run by it."""
        return fingerprint(self.content())

    def as_json(self) -> Settings:
        """The content of `plan.json`, which a dry run prints: the fields and the fingerprint."""
        return {**self.content(), FINGERPRINT: self.run_fingerprint}

    def text(self) -> str:
        """The text of `plan.json`."""
        return json.dumps(self.as_json(), indent=1) + "\n"


class ShardedPlan(Plan):
    """The plan of a run over the rows of a set, in shards, each of which becomes a part file."""

    pairs_fingerprint: str
    rows: int = Field(ge=0)
    rows_per_shard: int = Field(ge=1)
    shards: int = Field(ge=0)

    @property
    def part_schema(self) -> pa.Schema:
        """The columns of the part files."""
        raise NotImplementedError

    def part_name(self, shard: int, revision: int = 0) -> str:
        """The name of a shard's part file. Revision r > 0 has the rows of the r-th retry of failed rows."""
        return part_name(shard, self.run_fingerprint, revision)

    def parts_by_shard(self, names: Iterable[str]) -> list[list[str]]:
        """The part files of each shard among `names`, in order of revision; empty for a shard that is not committed."""
        fingerprint_of_run = self.run_fingerprint
        parts: list[dict[int, str]] = [{} for _ in range(self.shards)]
        for name in names:
            match = PART.fullmatch(name)
            if match and match[2] == fingerprint_of_run and int(match[1]) < self.shards:
                parts[int(match[1])][int(match[3] or 0)] = name
        # A revision counts only if all earlier ones exist.
        return [[each[r] for r in range(len(each)) if r in each] if 0 in each else [] for each in parts]


class NoiseSettings(BaseModel):
    """How the noise of the records was made and is stored, for their readers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: None for imported noise.
    seed: int | None
    transform: Literal["orthogonal", "free"]
    patch_size: int
    regions: int
    #: Number of base noises drawn per image, of which the best was used.
    candidates: int = 1
    store: Literal["parameters", "noise"]
    #: Whether records have their target latents.
    store_latents: bool

    @property
    def is_free(self) -> bool:
        """Whether the noise is not a rotation of its base noise."""
        return self.transform == "free"

    @property
    def is_kept(self) -> bool:
        """Whether records store the noise in full."""
        return self.is_free or self.store == "noise"


class AssignmentPlan(ShardedPlan):
    """The plan of a run that makes assignments, by any verb."""

    model_fingerprint: str
    noise: NoiseSettings
    #: All other settings that decide the result.
    config: Settings = {}

    @property
    def size_settings(self) -> Settings:
        """What the plan says of the sizes of the images."""
        return {name: self.config[name] for name in SIZE_SETTINGS if name in self.config}

    def framing(self, own_size: Size) -> Framing:
        """The sizes of the images, and how these were cropped; `own_size` (Y, X) is the model's own size.

        Raises UserError for a plan of unknown content.
        """
        try:
            return Framing.of_settings(self.config, own_size, self.noise.seed)
        except ValueError as error:
            raise UserError(f"the plan of the assignments has an unknown framing: {error}") from error

    @property
    def config_fingerprint(self) -> str:
        """The fingerprint of all settings, without the rows and the model."""
        return fingerprint([self.noise.model_dump(mode="json"), self.config])

    @property
    def part_schema(self) -> pa.Schema:
        return HALF_SCHEMA if self.noise.store == "noise" else SCHEMA


class ReconstructionPlan(AssignmentPlan):
    """Noise that a model maps closest to each image of a pair set."""

    verb: ClassVar[str] = "assign"

    kind: Literal["reconstruction"] = "reconstruction"
    #: Fingerprint of the run whose assignments the search starts from.
    warm_start: str | None = None


class RewardPlan(AssignmentPlan):
    """The noise with the highest reward for each prompt; there are no images to which it was matched."""

    verb: ClassVar[str] = "reward"

    kind: Literal["reward"] = "reward"
    #: The rewards that are optimised, with their weights, and those that are reported only.
    rewards: dict[str, float]
    report_rewards: str | None
    reward_fingerprints: dict[str, str]

    @property
    def config_fingerprint(self) -> str:
        return fingerprint([super().config_fingerprint, self.rewards, self.report_rewards])

    @property
    def part_schema(self) -> pa.Schema:
        schema = super().part_schema
        for column in REWARD_FIELDS:
            schema = schema.append(column)
        return schema


class ImportedPlan(AssignmentPlan):
    """Noise from a folder of the reference implementation."""

    verb: ClassVar[str] = "import"

    kind: Literal["imported"] = "imported"
    samples_fingerprint: str
    latent_shape: tuple[int, int, int]
    #: s of x_T = s·ε: as stated by the user, and that of the model.
    noise_scale: float | None
    model_noise_scale: float | None


#: The kinds of plans that a reader of assignments accepts.
ASSIGNMENT_PLANS = (ReconstructionPlan, RewardPlan, ImportedPlan)


def read_plan(folder: Store, *kinds: type[AnyPlan]) -> AnyPlan:
    """The plan of a folder, of one of `kinds`.

    Raises FileNotFoundError if there is none, OSError if it cannot be read, and UserError, with the place, if it is damaged, has
    another format or kind, or does not match the fingerprint in it.
    """
    return parse_plan(plan_text(folder), f"{folder.location}/{PLAN_FILE}", *kinds)


def plan_text(folder: Store) -> bytes:
    """The content of `plan.json`. Raises OSError, and UserError if the file is too large to be a plan."""
    try:
        return folder.read_within(PLAN_FILE, MOST_PLAN_BYTES)
    except TooLarge as error:
        raise UserError(
            f"{folder.location}/{PLAN_FILE}: {error}, so it is not a plan; delete it or move it away"
        ) from error


def parse_plan(text: bytes, where: str, *kinds: type[AnyPlan]) -> AnyPlan:
    """The plan in the text of a file; `where` is the file's path. Raises UserError as `read_plan` does."""
    try:
        content = parse_json(text, where, encodable=True)
    except NotParsedError as error:
        raise UserError(f"{where} is damaged: {error.why}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{where} is damaged, or was not made by ortho: it names no format")
    if content["format"] != FORMAT:
        raise UserError(f"{where} is of format {shown(content['format'])}, this version reads {FORMAT}")
    known = {str(kind.model_fields["kind"].default): kind for kind in kinds}
    kind = known.get(str(content.get("kind")))
    if kind is None:
        accepted = " or ".join(repr(name) for name in known)
        raise UserError(f"{where} is the plan of another kind of run: {shown(content.get('kind'))}, not {accepted}")
    stated = content.pop(FINGERPRINT, None)
    plan = needed(model_of, kind, content, where)
    if stated != plan.run_fingerprint:
        raise UserError(
            f"{where} was changed: its {FINGERPRINT} is {shown(stated)}, but its content has {plan.run_fingerprint}"
        )
    return plan


def differences(there: Mapping[str, object], now: Mapping[str, object], prefix: str = "") -> list[str]:
    """One phrase per value that differs: `name was A, now B`."""
    phrases = []
    for key in sorted({*there, *now}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            phrases += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            phrases.append(f"{prefix}{key} was {a!r}, now {b!r}")
    return phrases
