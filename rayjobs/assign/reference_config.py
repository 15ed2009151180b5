"""The options of `ortho export` and `ortho import`."""

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import LocalPath, Location, ModelPath, OutputLocation, OutputPath, PairsLocation


class ExportJob(BaseModel):
    """Write assignments as the reference implementation's folder: a manifest, and a noise file for each sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    assignments: Location = resolved(description="folder or URL that `ortho assign` wrote to")
    model: ModelPath = resolved(description="model folder; tells the noise's shape and scale")
    out: OutputPath = conduct(description="local folder to write; the same command again resumes")
    noise_scale: float | None = resolved(
        None, gt=0, allow_inf_nan=False, description="multiply the noise by this (none: as the model's scheduler does)"
    )
    image_root: LocalPath | None = decides(
        None,
        description="folder of the images, for absolute paths in the manifest (none: paths as the pair set has them)",
    )


class ImportJob(PairFields):
    """Read the reference implementation's folder of noise files as assignments to train on."""

    samples: LocalPath = resolved(
        description="folder with manifest.jsonl and samples/, from the reference or `ortho export`"
    )
    model: ModelPath = resolved(description="model folder; tells the noise's shape and scale")
    out: OutputLocation = conduct(description="folder or URL for the assignments; the same command again resumes")
    verify: bool = conduct(
        False, description="compare what was made before with its checksums, and not sizes and times alone"
    )
    pairs: PairsLocation | None = resolved(
        None, description="pair set that the images are in (none: the copies of them in the samples folder)"
    )
    noise_scale: float | None = decides(
        None,
        gt=0,
        allow_inf_nan=False,
        description="what the noise was multiplied by (none: what meta.json says, or else as the model's scheduler does)",
    )
