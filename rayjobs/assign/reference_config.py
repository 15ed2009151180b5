"""The options of `ortho export` and `ortho import`."""

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import LocalPath, Location, ModelPath, OutputLocation, OutputPath, PairsLocation


class ExportJob(BaseModel):
    """Write assignments as the reference implementation's folder: a manifest, and a noise file for each sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    assignments: Location = resolved(description="folder or URL that `ortho assign` wrote to")
    model: ModelPath = resolved(description="model folder; gives the shape and scale of the noise")
    out: OutputPath = conduct(description="local folder to write; the same command again resumes")
    noise_scale: float | None = resolved(
        None, gt=0, allow_inf_nan=False, description="factor on the noise (none: the one of the model's scheduler)"
    )
    image_root: LocalPath | None = decides(
        None,
        description="folder of the images, to write absolute paths into the manifest (none: the paths of the pair set)",
    )


class ImportJob(PairFields):
    """Read the reference implementation's folder of noise files as assignments to train on."""

    samples: LocalPath = resolved(
        description="folder with manifest.jsonl and samples/, from the reference or `ortho export`"
    )
    model: ModelPath = resolved(description="model folder; gives the shape and scale of the noise")
    out: OutputLocation = conduct(description="folder or URL for the assignments; the same command again resumes")
    verify: bool = conduct(
        False, description="compare existing output files with their checksums, not only with their sizes and times"
    )
    pairs: PairsLocation | None = resolved(
        None, description="pair set with the images (none: the copies of the images in the samples folder)"
    )
    noise_scale: float | None = decides(
        None,
        gt=0,
        allow_inf_nan=False,
        description="factor that is in the stored noise (none: the one in meta.json, else that of the model's scheduler)",
    )
