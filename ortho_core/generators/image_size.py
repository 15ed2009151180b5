"""The size of a model's images as an option: `WIDTHxHEIGHT` in pixels, or one number for a square.

Axes: Y × X pixels.
"""

import re
from typing import Annotated

from pydantic import BeforeValidator

#: The largest side that is accepted, in pixels.
MOST_PIXELS_A_SIDE = 8192


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


#: An image size as text, always in the form `WIDTHxHEIGHT`.
ImageSize = Annotated[str, BeforeValidator(normalised)]


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
