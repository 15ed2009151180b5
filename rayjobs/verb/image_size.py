"""The options about the sizes of images: one size, or several of about one area (buckets)."""

from typing import Any, Literal

from pydantic import BaseModel

from ortho_core.errors import UserError
from ortho_core.framing.framing import USUAL_MOST_LOST, Crop, Framing
from ortho_core.framing.image_size import AUTO, NONE, Buckets, ImageSize, size_of, text_of
from ortho_core.generators.bucket_sizes import automatic, check_sizes, own_resolution, own_size
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, resolved


class SizeSettings(BaseModel):
    """The size of the images."""

    size: ImageSize | None = decides(
        None,
        description="size of all images, WIDTHxHEIGHT in pixels, or one number for a square (none: the model's own)",
    )


class BucketSettings(SizeSettings):
    """The sizes of the images, and how pictures of other shapes are cropped."""

    resolution: int | None = resolved(
        None,
        ge=1,
        le=8192,
        description="side in pixels of a square with the area of the images (none: the model's own)",
    )
    buckets: Buckets | None = resolved(
        None,
        description="sizes of the images; a picture goes to the one that crops it least. auto: sizes of one area, from upright "
        "to lying; none: one size for all; or a list such as 512x512,640x448 (left out: as the model was trained, mostly none)",
    )
    crop: Crop = resolved(
        "center",
        description="what is kept of a picture that is longer than its size: its center, or a random part (the row decides); "
        "none: nothing is cut off, the picture is stretched (only with several sizes)",
    )
    max_crop: float | None = resolved(
        None,
        gt=0,
        le=1,
        description="largest share of a picture that the crop may cut off; a row that would lose more is quarantined (none: "
        f"{USUAL_MOST_LOST} with several sizes, 1 with one)",
    )
    micro_conditioning: Literal["auto", "image", "plain"] = resolved(
        "auto",
        description="what SDXL is told of each picture: image, its own size and crop; plain, those of a picture that has its "
        "size already, as when sampling (auto: image with several sizes)",
    )

    def size_options(self) -> dict[str, Any]:
        """The values of these options."""
        return {name: getattr(self, name) for name in BucketSettings.model_fields}


def framing_of(job: BucketSettings, model: ModelFolder, patches: int, seed: int) -> Framing:
    """How the job's pictures are framed; `patches` is patch size × regions, `seed` decides random crops.

    Raises UserError for options that contradict each other, and for sizes that the model does not make.
    """
    if job.size is not None and (job.buckets not in (None, NONE) or job.resolution is not None):
        other = "--buckets" if job.resolution is None else "--resolution"
        raise UserError(f"--size is one size for all images: leave out either --size or {other}")
    chosen = job.buckets or _of_training(job, model)
    if chosen == AUTO:
        sizes = automatic(model, job.resolution or own_resolution(model), patches)
    elif chosen == NONE:
        square = (job.resolution, job.resolution) if job.resolution is not None else None
        sizes = (size_of(job.size) or square or own_size(model),)
    elif job.resolution is not None:
        raise UserError(
            "--resolution is the area of automatic sizes, and --buckets lists sizes: leave out one of the two"
        )
    else:
        sizes = tuple(size for text in chosen.split(",") if (size := size_of(text)) is not None)
    if len(sizes) > 1:
        check_sizes(model, sizes, patches)
    else:
        model.at(sizes[0])
    several = len(sizes) > 1
    if job.crop == "none" and not several:
        raise UserError(
            "--crop none stretches every picture to one shape: give several sizes (--buckets auto), or leave it out"
        )
    most_lost = job.max_crop if job.max_crop is not None else USUAL_MOST_LOST if several else 1.0
    tells = several if job.micro_conditioning == "auto" else job.micro_conditioning == "image"
    return Framing(sizes, job.crop, most_lost, tells, seed)


def as_options(framing: Framing, model: ModelFolder) -> dict[str, Any]:
    """The sizes as options that are independent of the model's defaults."""
    texts = [text_of(size) for size in framing.sizes]
    one = None if len(texts) > 1 or framing.sizes[0] == own_size(model) else texts[0]
    return {"size": one, "resolution": None, "buckets": ",".join(texts) if len(texts) > 1 else NONE}


def _of_training(job: BucketSettings, model: ModelFolder) -> str:
    """The sizes that the model was trained at, as its folder says; none if it says nothing, or if a size is given."""
    trained = model.recipe.buckets if model.recipe is not None else ()
    return NONE if not trained or job.size is not None or job.resolution is not None else ",".join(trained)
