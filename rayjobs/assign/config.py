"""The options of `ortho assign`."""

from ortho_core.estep.config import AssignConfig
from ortho_core.generators.lora_config import LoraList
from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import Location, ModelPath, OutputLocation, PairsLocation
from rayjobs.pool.config import PoolSettings


class AssignSettings(AssignConfig, PoolSettings):
    """How the E-step runs; `em` has these under `assign.`."""

    store_latents: bool = decides(True, description="keep E(x) in the record, so that training need not encode again")
    report: bool = conduct(
        True, description="leave report.html: pictures of some rows, the losses, what was quarantined"
    )


class AssignJob(AssignSettings, PairFields):
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
        None, description="finished assignments of the same pairs, e.g. with an earlier model, to start from"
    )
    retry_failures: bool = conduct(False, description="besides what is not done yet, try the quarantined rows again")
