"""Decode image files to pixels: upright, RGB, at the generator's size. Does not import torch.

Axes: Y × X pixels.
"""

import importlib
import io
import warnings
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image, UnidentifiedImageError

from ortho_core.errors import BadRow
from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.pairs.instead import instead
from ortho_core.pairs.limits import MAX_IMAGE_PIXELS, PIXELS_AT_ONCE, Room
from ortho_core.pairs.metadata_limits import without_metadata

#: Default limit in pixels. Larger images are refused before decoding: a decompression bomb is small on disk.
MAX_PIXELS = MAX_IMAGE_PIXELS
#: Packages that add formats to Pillow if they are installed (HEIC and JPEG XL among them).
PLUGINS = ("pillow_heif", "pillow_jxl")
for _plugin in PLUGINS:
    with suppress(ImportError):
        getattr(importlib.import_module(_plugin), "register_heif_opener", lambda: None)()
Image.init()
#: Formats of Pillow that are not still pictures: programs that need an interpreter, videos, tables of measurements, and formats
#: without a signature, which accept any bytes.
NO_PICTURES = {
    *("EPS", "WMF", "FLI", "MPEG", "BUFR", "GRIB", "HDF5", "FITS", "IPTC"),
    *("MCIDAS", "SPIDER", "IMT", "XVTHUMB"),
}
_USUAL = {name: at for at, name in enumerate(("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"))}
FORMATS = tuple(sorted(Image.OPEN.keys() - NO_PICTURES, key=lambda name: (_USUAL.get(name, len(_USUAL)), name)))
#: The suffixes of image files, in lower case, with their dots: those of the formats that are decoded.
SUFFIXES = frozenset(e for e, name in Image.registered_extensions().items() if name in {*FORMATS, "MPO"})
#: Formats whose first frame is the picture; the others are previews, layers or other views of it.
ONE_PICTURE = {"MPO", "PSD", "HEIF"}
#: Largest number of pages of a TIFF file that are checked for being smaller copies of the first.
MOST_PAGES = 64

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: TIFF tags: purpose of a page, bits per sample, sample format, minimum and maximum sample value.
SUBFILE_TYPE, BITS, SAMPLE_FORMAT, LEAST, GREATEST = 254, 258, 339, 340, 341


ROOM = Room(PIXELS_AT_ONCE)


def decode_image(
    content: bytes, size: tuple[int, int], name: str = "image", most_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode a still image to (Y, X, 3) uint8; `size` is (Y, X), `name` is its name in messages.

    The result of `decode_picture` is scaled (Lanczos) to cover the size and cropped at the centre. Raises BadRow as that does.
    """
    return decode_framed(content, Framing.at(size), "", name, most_pixels)[0]


def decode_framed(
    content: bytes, framing: Framing, key: str, name: str = "image", most_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, Frame]:
    """Decode a still image in its frame: (Y, X, 3) uint8 and the frame. `key` is the row's sample id.

    Raises BadRow as `decode_picture` does, and for a picture that would lose too much to the crop.
    """
    with ROOM.held() as hold:
        return framing.cut(_picture(content, name, most_pixels, hold), key, name)


def decode_picture(content: bytes, name: str = "image", most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a still image at its own size: turned upright by its EXIF orientation, converted to RGB with alpha over white.

    Raises BadRow for anything that is not one decodable image of at most `most_pixels` pixels.
    """
    with ROOM.held() as hold:
        return _picture(content, name, most_pixels, hold)


def _picture(content: bytes, name: str, most_pixels: int, hold: Callable[[int], None]) -> Image.Image:
    """`decode_picture`, once `hold` has made room for its pixels."""
    if not content:
        raise BadRow("undecodable-image", f"{name} is empty")
    try:
        try:
            return _decode(content, name, most_pixels, hold)
        except (BadRow, MemoryError, Image.DecompressionBombError):
            raise
        except Exception:
            # Broken metadata must not make the pixels unusable.
            bare = without_metadata(content)
            if bare is None:
                raise
            return _decode(bare.content, name, most_pixels, hold, bare.exif)
    except Image.DecompressionBombError as error:
        raise BadRow("too-large", f"{name}: {error}") from error
    except (BadRow, MemoryError):
        raise
    # On damaged bytes Pillow's decoders raise many kinds of errors, struct.error and TypeError too.
    except Exception as error:
        if isinstance(error, UnidentifiedImageError):
            reason = "it is " + (instead(content) or f"none of {', '.join(FORMATS)}")
        else:
            reason = str(error)[:200]
        raise BadRow("undecodable-image", f"{name} does not decode: {reason}") from error


def _decode(
    content: bytes, name: str, most_pixels: int, hold: Callable[[int], None], exif: bytes | None = None
) -> Image.Image:
    """The upright picture in RGB; `exif` is an EXIF block that the bytes lack. Raises whatever Pillow raises, and BadRow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of decoders about metadata
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            pixels = opened.width * opened.height
            if pixels > most_pixels:
                excess = f"{name}: {opened.width}×{opened.height} exceeds {most_pixels} pixels"
                raise BadRow("too-large", f"{excess} (--max-image-pixels raises the limit)")
            hold(pixels)
            frames = 1 if opened.format in ONE_PICTURE else getattr(opened, "n_frames", 1)
            if frames > 1 and not (opened.format == "TIFF" and _others_are_smaller_copies(opened, frames)):
                raise BadRow("animated", f"{name} has {frames} frames; a still image is expected")
            tags = dict(getattr(opened, "tag_v2", {}))
            opened.load()
            turn = UPRIGHT.get(_orientation(opened, exif))
            picture = opened.transpose(turn) if turn is not None else opened.copy()
            if picture.mode.startswith("I") or picture.mode == "F":
                picture = _eight_bit(picture, tags, str(opened.format), name)
            return to_rgb(picture)


def _orientation(opened: Image.Image, exif: bytes | None) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if the EXIF block is broken or has another value."""
    try:
        block = opened.getexif()
        if exif is not None:
            block = Image.Exif()
            block.load(exif)
        orientation = block.get(ORIENTATION)
    except Exception:  # on damaged bytes the parser may raise anything
        return 1
    return orientation if isinstance(orientation, int) else 1


def _others_are_smaller_copies(opened: Image.Image, frames: int) -> bool:
    """Whether all pages but the first are marked as thumbnails or masks, or are at most half as high and wide."""
    X, Y = opened.size
    copies = frames <= MOST_PAGES
    for page in range(1, frames if copies else 1):
        opened.seek(page)
        kind = getattr(opened, "tag_v2", {}).get(SUBFILE_TYPE, 0)
        marked = isinstance(kind, int) and bool(kind & 0b101)
        copies = copies and (marked or (2 * opened.width <= X and 2 * opened.height <= Y))
    opened.seek(0)
    return copies


def _eight_bit(picture: Image.Image, tags: dict[int, object], form: str, name: str) -> Image.Image:
    """Convert grey of more than 8 bits, or floats, to 8-bit grey. Raises BadRow if the range of its values is not known."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadRow("unknown-range", f"{name} contains values that are not finite")
    low, high = float(values.min()), float(values.max())
    limits = _range(picture.mode, values, tags, form)
    if limits is None or limits[0] > low:
        raise BadRow(
            "unknown-range",
            f"{name} contains {'floats' if picture.mode == 'F' else 'integers'} from {low:g} to {high:g}, and the value of white "
            "is not known; accepted: 0 to 1 as floats, 0 to 255, 0 to 65535 as integers, or TIFF's tags 340 and 341",
        )
    black, white = limits
    scaled = (values - black) * (255 / (white - black))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _range(mode: str, values: np.ndarray, tags: dict[int, object], form: str) -> tuple[float, float] | None:
    """The values of black and white of an image with one channel; None if they are not known."""
    low, high = float(values.min()), float(values.max())
    bits, kind = _number(tags.get(BITS)), _number(tags.get(SAMPLE_FORMAT))
    if mode.startswith("I;16"):
        return 0.0, 2.0**bits - 1 if bits is not None and 8 < bits < 16 else 65535.0
    if mode == "F" and low >= 0 and high <= 1:
        return 0.0, 1.0
    least, greatest = _number(tags.get(LEAST)), _number(tags.get(GREATEST))
    if least is not None and greatest is not None and least < greatest:
        return min(least, low), greatest
    if mode == "F":
        # HDR images have a few values far above 1, and most below; photographs in 0 to 255 reach the bright half.
        of_bytes = (values == values.round()).all() or (high > 127 and (values > 1).mean() > 0.5)
        return (0.0, 255.0) if low >= 0 and high <= 255 and of_bytes else None
    if low < 0 or high > 65535:
        return None
    if bits == 16 and kind == 2:
        return 0.0, 32767.0
    return 0.0, 255.0 if high <= 255 and form not in ("PPM", "PNG") else 65535.0


def _number(value: object) -> float | None:
    """The first number of a TIFF tag."""
    first = value[0] if isinstance(value, tuple) and value else value
    return float(first) if isinstance(first, int | float) else None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert an 8-bit picture to RGB; transparent parts are laid over white."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")
