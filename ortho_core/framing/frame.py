"""The frame of a picture: its own size, the corner of its crop, and the size that it is seen at.

Axes: Y × X pixels.
"""

from typing import NamedTuple

#: (Y, X) in pixels.
Size = tuple[int, int]


class Frame(NamedTuple):
    """Six numbers of pixels, in the order of SDXL's micro-conditioning (Podell et al. 2023, section 2.2)."""

    #: The upright picture before it was scaled.
    original_height: int
    original_width: int
    #: The corner of the crop in the scaled picture.
    top: int
    left: int
    #: The size that it is seen at.
    height: int
    width: int

    @property
    def size(self) -> Size:
        """(Y, X) that it is seen at."""
        return self.height, self.width

    @property
    def enlarged(self) -> float:
        """The factor by which the picture was scaled; above 1 it was enlarged, without gaining detail."""
        return max(self.height / self.original_height, self.width / self.original_width)

    @staticmethod
    def plain(size: Size) -> "Frame":
        """The frame of a picture that has this size already: as images are sampled."""
        return Frame(*size, 0, 0, *size)
