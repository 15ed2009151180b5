"""The options of `ortho evaluate`."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ortho_core.evaluation.features import TINY_CLIP
from ortho_core.pairs import PairFields
from ortho_core.rewards.names import parse_rewards
from ortho_core.storage.store import Location
from rayjobs.pool.config import PoolResources, labels, span


def _named(value: Any) -> Any:
    """`name=folder,name=folder` or a plain list of folders, as a mapping."""
    if not isinstance(value, str):
        return value
    named = {}
    for item in value.split(","):
        name, equals, folder = item.partition("=")
        named[name if equals else Path(item).name] = folder if equals else item
    if len(named) < len(value.split(",")):
        raise ValueError("two models of the same name; write name=folder,name=folder")
    return named


class EvaluateSettings(PoolResources):
    """How models are judged; `em` has these under `evaluate.`."""

    rows: int = Field(128, ge=8, description="held-out rows used, from the first")
    steps: int = Field(20, ge=1, description="evaluations of the E-step that looks for each row's closest image")
    batch_size: int = Field(32, ge=1, description="images side by side in that E-step")
    seed: int = Field(0, ge=0, description="decides the noises and the resamples")
    rows_per_shard: int = Field(128, ge=1, description="rows of one task and part file, what a lost worker repeats")
    workers: Annotated[str, BeforeValidator(span)] = Field(
        "2",
        description="actors in the pool, N or LEAST:MOST; each holds one model at a time and all judges (0: judge in this "
        "process, for a debugger)",
    )
    features: str = Field(
        "tiny-clip",
        description="what FID, KID, precision and recall see: tiny-clip, inception, or a vision model's folder",
    )
    cmmd_features: str = Field("tiny-clip", description="what CMMD sees: tiny-clip, or a CLIP model's folder")
    rewards: str | None = Field("clip", description="rewards of the images at random noise: NAME,NAME")
    rewards_root: Location = Field("models", description="folder that the folders of rewards and of inception are in")
    reward_folders: Annotated[dict[str, Location] | None, BeforeValidator(labels)] = Field(
        None, description="folders of single rewards that are elsewhere: NAME=FOLDER (clip: tiny-clip)"
    )
    lpips: Location | None = Field(
        None, description="torchvision's weights of AlexNet, VGG16 or SqueezeNet 1.1, or their folder, for LPIPS"
    )


class EvaluateJob(EvaluateSettings, PairFields):
    """Judge models on held-out pairs. The first model is the one that drift is measured against."""

    model: Annotated[dict[str, Path], BeforeValidator(_named)] = Field(
        description="model folders as FOLDER,FOLDER or NAME=FOLDER,NAME=FOLDER; the first is the base"
    )
    pairs: Location = Field(description="held-out pair set, of any kind that assign reads")
    out: Path = Field(description="folder for the figures and pictures; the same command again resumes")
    patch_size: int = Field(2, ge=1, description="patch size of the E-step")
    base_from: Path | None = Field(
        None,
        description="finished evaluation by the same settings, whose figures of the same base model are taken over",
    )
    warm_start: ClassVar[None] = None
    candidate_forwards: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.batch_size

    def folders(self) -> dict[str, Path]:
        """Where the rewards' weights are. `clip` is tiny-clip, except where `aesthetic` needs the large one."""
        tiny = {} if "aesthetic" in self.reward_names() else {"clip": TINY_CLIP}
        given = {name: Path(folder) for name, folder in (self.reward_folders or {}).items()}
        return {"": Path(self.rewards_root), **tiny, **given}

    def reward_names(self) -> list[str]:
        """Raises UserError for a name that is none."""
        return list(parse_rewards(self.rewards)) if self.rewards is not None else []
