"""The options of `ortho evaluate`."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from ortho_core.framing.framing import Framing
from ortho_core.generators.lora_config import LoraList
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import LocalPath, Location, ModelPath, OutputPath, PairsLocation, Place
from rayjobs.pool.config import PoolResources, span
from rayjobs.verb.image_size import BucketSettings, framing_of
from rayjobs.verb.precision import Precision
from rayjobs.verb.resources import labels


def _named(value: Any, info: ValidationInfo) -> Any:
    """`name=folder,name=folder` or a plain list of folders, as a mapping."""
    if not isinstance(value, str):
        return value
    named = {}
    for item in value.split(","):
        name, equals, folder = item.partition("=")
        folder = Place().read(folder if equals else item, info.context)
        named[name if equals else Path(folder).name] = folder
    if len(named) < len(value.split(",")):
        raise ValueError("two models of the same name; write name=folder,name=folder")
    return named


def _by_model(value: Any) -> Any:
    """`name=FILE:WEIGHT,FILE:WEIGHT` as a mapping; files without a name are under ""."""
    if not isinstance(value, str):
        return value
    named: dict[str, list[str]] = {}
    for item in value.split(","):
        name, equals, file = item.partition("=")
        of_all = not equals or "/" in name
        named.setdefault("" if of_all else name.strip(), []).append(item if of_all else file)
    return named


#: A vision model, by name or by folder.
FeatureModel = Annotated[str, Place(names="tiny-clip|inception")]


class EvaluateSettings(PoolResources, Precision):
    """How models are judged; `em` has these options under `evaluate.`."""

    rows: int = resolved(
        128, ge=8, description="held-out rows to use: the first ones, or of a part of a set, rows spread over all of it"
    )
    steps: int = decides(20, ge=1, description="evaluations of the E-step that looks for each row's closest image")
    batch_size: int = conduct(
        0, ge=0, description="images in one batch of that E-step (0: as many as fit the GPU, 32 without one)"
    )
    seed: int = decides(0, ge=0, description="decides the noises and the bootstrap resamples")
    rows_per_shard: int = resolved(
        128, ge=1, description="rows of one task and its part file; a lost worker repeats one task"
    )
    workers: Annotated[str, BeforeValidator(span)] = conduct(
        "2",
        description="actors in the pool, N or LEAST:MOST; each holds one model at a time and all judges (0: judge in this "
        "process, for a debugger)",
    )
    features: FeatureModel = resolved(
        "tiny-clip",
        description="feature model of FID, KID, precision and recall: tiny-clip, inception, or a vision model's folder",
    )
    cmmd_features: FeatureModel = resolved(
        "tiny-clip", description="feature model of CMMD: tiny-clip, or a CLIP model's folder"
    )
    rewards: str | None = resolved("clip", description="rewards of the images at plain noise: NAME,NAME")
    rewards_root: Location = resolved(
        "models", description="folder that holds the model folders of the rewards and of inception"
    )
    reward_folders: Annotated[dict[str, Location] | None, BeforeValidator(labels)] = resolved(
        None, description="folders of rewards that are not in --rewards-root: NAME=FOLDER (clip: tiny-clip)"
    )
    lpips: Location | None = resolved(
        None, description="torchvision's weights of AlexNet, VGG16 or SqueezeNet 1.1, or their folder, for LPIPS"
    )


class EvaluateJob(EvaluateSettings, PairFields, BucketSettings):
    """Judge models on held-out pairs. The first model is the base: drift is measured from it."""

    model: Annotated[dict[str, ModelPath], BeforeValidator(_named)] = resolved(
        description="model folders as FOLDER,FOLDER or NAME=FOLDER,NAME=FOLDER; the first is the base"
    )
    lora: Annotated[dict[str, LoraList], BeforeValidator(_by_model)] = resolved(
        {},
        description="LoRAs to add to weights: FILE[:WEIGHT],... for all models, NAME=FILE[:WEIGHT],... for the model NAME",
    )
    pairs: PairsLocation = resolved(description="held-out pair set, of any kind that assign reads")
    out: OutputPath = conduct(description="folder for the figures and pictures; the same command again resumes")
    patch_size: int = decides(2, ge=1, description="patch size of the E-step")
    trained_on: Location | None = conduct(
        None,
        description="assignments that a model was trained on; the report counts the held-out images that are among them",
    )
    base_from: LocalPath | None = conduct(
        None,
        description="finished evaluation with the same settings and base model; its figures of the base model are reused",
    )


def judged_framing(job: EvaluateJob, model: ModelFolder) -> Framing:
    """The sizes of the job's images. Raises UserError as `framing_of` does."""
    return framing_of(job, model, job.patch_size, job.seed)
