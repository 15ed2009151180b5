"""From the bytes of an image file to pixels: decoded, upright, RGB, at the generator's size. Imports no torch.

Axes: Y × X pixels.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ortho_core.errors import BadRow

#: Larger images are refused before they are decoded (a decompression bomb is small on disk).
MAX_PIXELS = 80_000_000
Image.init()
#: Formats that are pictures and nothing else: some that Pillow opens (EPS) are programs that another program has to run.
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
    if name in Image.OPEN
)


def decode_image(content: bytes, size: tuple[int, int], name: str = "image") -> np.ndarray:
    """Decode a still image to (Y, X, 3) uint8; `size` is (Y, X), `name` is what messages call it.

    EXIF-rotated, converted to RGB with alpha over white, scaled (Lanczos) to cover the size and cropped at the centre.
    Raises BadRow for anything that is not one decodable image of at most `MAX_PIXELS` pixels.
    """
    Y, X = size
    if not content:
        raise BadRow("undecodable-image", f"{name} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the decoders, about what the file holds besides pixels
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise BadRow("too-large", f"{name}: {opened.width}×{opened.height} exceeds {MAX_PIXELS} pixels")
                # A telephone's JPEG may carry a preview or a gain map as further pictures (MPO); the first is the image.
                frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
                if frames > 1:
                    raise BadRow("animated", f"{name} has {frames} frames; a still image is expected")
                picture = to_rgb(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError as error:
        raise BadRow("too-large", f"{name}: {error}") from error
    except (BadRow, MemoryError):
        raise
    # Pillow's decoders raise whatever damaged bytes lead them to, struct.error and TypeError too.
    except Exception as error:
        reason = (
            f"it is none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else str(error)[:200]
        )
        raise BadRow("undecodable-image", f"{name} does not decode: {reason}") from error
    return np.asarray(ImageOps.fit(picture, (X, Y), Image.Resampling.LANCZOS), dtype=np.uint8)


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB, with transparency laid over white and 16-bit grey scaled to 8 (Pillow alone would clip it)."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")
