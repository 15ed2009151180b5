"""Sizes of images as options: `WIDTHxHEIGHT` in pixels, or one number for a square; and lists of sizes.

Axes: Y × X pixels.
"""

import re
from typing import Annotated

from pydantic import BeforeValidator

#: The largest side that is accepted, in pixels.
MOST_PIXELS_A_SIDE = 8192
#: Values of `--buckets` that are no list of sizes: sizes of one area that suit the model, and one size for all.
AUTO, NONE = "auto", "none"


def normalised(value: object) -> object:
    """`768` and `768x768` as `768x768`, `768X512` as `768x512`. Raises ValueError for other texts; None stays."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:[xX×](\d{1,5}))?", str(value).strip())
    sides = [int(side) for side in match.groups(match[1])] if match else []
    if not sides or not all(0 < side <= MOST_PIXELS_A_SIDE for side in sides):
        raise ValueError(
            f"{value!r} is not an image size; accepted: WIDTHxHEIGHT in pixels such as 768x512, or one number for a square, "
            f"each side from 1 to {MOST_PIXELS_A_SIDE}"
        )
    return "x".join(map(str, sides))


def normalised_list(value: object) -> object:
    """`auto`, `none`, or sizes as `768x512,512x512`, each once. Raises ValueError for other texts; None stays."""
    if value is None or value in (AUTO, NONE):
        return value
    texts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        sizes = [str(normalised(text)) for text in texts]
    except ValueError as error:
        raise ValueError(f"{error}; or {AUTO}, or {NONE}") from None
    return ",".join(dict.fromkeys(sizes))


#: An image size as text, always in the form `WIDTHxHEIGHT`.
ImageSize = Annotated[str, BeforeValidator(normalised)]
#: `auto`, `none`, or image sizes as text, with commas between them.
Buckets = Annotated[str, BeforeValidator(normalised_list)]


def size_of(text: str | None) -> tuple[int, int] | None:
    """(Y, X) of `WIDTHxHEIGHT`; None for None."""
    if text is None:
        return None
    X, Y = map(int, text.split("x"))
    return Y, X


def text_of(size: tuple[int, int]) -> str:
    """`WIDTHxHEIGHT` of (Y, X)."""
    Y, X = size
    return f"{X}x{Y}"
