"""The option `--size` of the verbs that make or match images."""

from pydantic import BaseModel

from ortho_core.generators.image_size import ImageSize
from ortho_core.marks import decides


class SizeSettings(BaseModel):
    """The size of the images."""

    size: ImageSize | None = decides(
        None,
        description="size of all images, WIDTHxHEIGHT in pixels, or one number for a square (none: the model's own)",
    )
