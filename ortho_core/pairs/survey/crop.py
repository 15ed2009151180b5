"""The effect of scaling a picture to cover a square and cropping it at the centre."""

import math

from PIL import Image, ImageDraw

#: Aspect ratios (width, height) that pictures are classified into.
SHAPES = ((9, 16), (2, 3), (3, 4), (4, 5), (1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (1, 2))


def lost(width: int, height: int) -> float:
    """The fraction of the picture that the crop removes."""
    return 1 - min(width, height) / max(width, height)


def enlarged(width: int, height: int, size: int) -> float:
    """The scale factor to a square of `size` pixels; below 1 the picture is reduced."""
    return size / min(width, height)


def shape(width: int, height: int) -> str:
    """The nearest usual aspect ratio: `3:2`; for a ratio far beyond 2:1, `longer than 2:1`."""
    ratio = width / height
    if not 0.45 <= ratio <= 2.2:
        return "longer than 2:1" if ratio > 1 else "longer than 1:2"
    x, y = min(SHAPES, key=lambda pair: abs(math.log(ratio * pair[1] / pair[0])))
    return f"{x}:{y}"


def framed(picture: Image.Image, side: int) -> Image.Image:
    """The picture, reduced to a longer side of at most `side` pixels, with the cropped-off parts faded and the crop framed."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    width, height = small.size
    kept = min(width, height)
    left, top = (width - kept) // 2, (height - kept) // 2
    box = (left, top, left + kept, top + kept)
    faded = Image.blend(small, Image.new("RGB", small.size, "white"), 0.65)
    faded.paste(small.crop(box), box[:2])
    ImageDraw.Draw(faded).rectangle((left, top, left + kept - 1, top + kept - 1), outline=(216, 27, 96), width=2)
    return faded
