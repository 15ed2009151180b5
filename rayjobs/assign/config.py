"""The options of `ortho assign`."""

from ortho_core.estep.config import AssignConfig
from ortho_core.framing.framing import Framing
from ortho_core.generators.lora_config import LoraList
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import Location, ModelPath, OutputLocation, PairsLocation
from rayjobs.pool.config import PoolSettings
from rayjobs.verb.image_size import BucketSettings, framing_of
from rayjobs.verb.prompt_embeddings import PromptEmbeddings


class AssignSettings(AssignConfig, PoolSettings):
    """How the E-step runs; `ortho em` has these options under `assign.`."""

    store_latents: bool = decides(
        True, description="store each image's latent E(x) with its noise, so that training need not encode it again"
    )
    report: bool = conduct(True, description="write report.html: pictures of some rows, losses, quarantined rows")


class AssignJob(AssignSettings, PairFields, BucketSettings, PromptEmbeddings):
    """Assign noise to every image of a pair set (the E-step)."""

    pairs: PairsLocation = resolved(
        description="pair set: a folder of images with captions, or files of rows (docs/guides/pair-sets.md); path or URL"
    )
    model: ModelPath = resolved(description="model: a diffusers folder, a LoRA folder, or a single-file checkpoint")
    lora: LoraList = resolved(
        (), description="LoRAs to add to the model's weights: FILE[:WEIGHT],FILE[:WEIGHT], of diffusers or kohya format"
    )
    out: OutputLocation = conduct(description="folder or URL for the assignments; the same command again resumes")
    warm_start: Location | None = resolved(
        None, description="start from finished assignments of the same pairs, e.g. those of an earlier model"
    )
    retry_failures: bool = conduct(False, description="try the quarantined rows again, besides the rows not done yet")


def assigned_framing(job: AssignJob, model: ModelFolder) -> Framing:
    """The sizes of the job's images. Raises UserError as `framing_of` does."""
    return framing_of(job, model, job.patch_size * job.regions, job.seed)
