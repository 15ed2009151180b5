"""How every picture of a set is framed: the nearest of the given sizes, scaled to cover it, and cropped by the least.

Axes: Y × X pixels.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from ortho_core.errors import BadRow
from ortho_core.framing.frame import Frame, Size
from ortho_core.framing.image_size import size_of, text_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

#: Where a picture that is longer than its size is cut: in the middle, not at all (it is stretched instead), or at a place that
#: its sample id decides.
Crop = Literal["center", "none", "random"]
#: With several sizes: the largest share of a picture that a crop may take, if none is given. A picture of 3:1 loses as much at
#: a size of 2:1.
USUAL_MOST_LOST = 0.34
#: Sides of automatic sizes are multiples of about 1/16 of the resolution, as is usual: of 64 pixels at 1024.
STEPS_A_SIDE = 16
#: The names in `Framing.settings`.
SIZE_SETTINGS = ("size", "sizes", "crop", "most_lost", "tells_frames")


@dataclass(frozen=True)
class Framing:
    """The sizes (buckets) that pictures are seen at, and the rule of the crop. The frame of a picture depends on nothing else."""

    #: The sizes; different, and in a fixed order.
    sizes: tuple[Size, ...]
    crop: Crop = "center"
    #: A picture that would lose a larger share of its area than this is not used.
    most_lost: float = 1.0
    #: Whether a model with micro-conditioning is told each picture's own frame; otherwise the plain frame of its size.
    tells_frames: bool = False
    #: Decides, with a row's sample id, the place of a random crop.
    seed: int = 0

    @staticmethod
    def at(size: Size) -> "Framing":
        """All pictures at one size, cropped at the centre."""
        return Framing((size,))

    @property
    def is_one_size(self) -> bool:
        return len(self.sizes) == 1

    @cached_property
    def main(self) -> Size:
        """The size of the largest area; among several of these the one nearest to a square."""
        return max(self.sizes, key=lambda size: (size[0] * size[1], min(size) / max(size)))

    def usual(self, own_size: Size) -> str | None:
        """A size to make images at, `WIDTHxHEIGHT`; None: the model's own size, which is one of the sizes."""
        return None if own_size in self.sizes else text_of(self.main)

    def nearest(self, width: int, height: int) -> Size:
        """The size at which a picture of `width` × `height` pixels loses least.

        Among sizes of one shape it is the largest that needs no enlargement, or else the smallest.
        """
        if self.is_one_size:
            return self.sizes[0]
        losses = [round(lost(width, height, size), 9) for size in self.sizes]
        best = [size for size, loss in zip(self.sizes, losses, strict=True) if loss == min(losses)]
        reduced = [size for size in best if size[0] <= height and size[1] <= width]
        return max(reduced) if reduced else min(best)

    def frame(self, width: int, height: int, key: str = "", name: str = "image") -> Frame:
        """The frame of a picture of `width` × `height` pixels; `key` is its sample id, `name` its name in messages.

        Raises BadRow for a picture that would lose more than `most_lost`.
        """
        Y, X = size = self.nearest(width, height)
        share = lost(width, height, size)
        if share > self.most_lost:
            raise BadRow(
                "too-extreme",
                f"{name} is {width}×{height}, and the nearest size, {X}×{Y}, would cut off {share:.0%} of it; accepted: "
                f"{self.most_lost:.0%} (--max-crop raises the limit, --buckets adds sizes)",
            )
        if self.crop == "none":
            return Frame(height, width, 0, 0, Y, X)
        x, y = self._place(key)
        scale = max(X / width, Y / height)
        top, left = round((height * scale - Y) * y), round((width * scale - X) * x)
        return Frame(height, width, top, left, Y, X)

    def cut(self, picture: "Image.Image", key: str = "", name: str = "image") -> "tuple[np.ndarray, Frame]":
        """The picture's pixels (Y, X, 3) uint8 in its frame, scaled by Lanczos, and the frame. Raises BadRow as `frame` does."""
        # Not above: options are checked with this module, and the help of a command should not wait for these.
        import numpy as np
        from PIL import Image, ImageOps

        frame = self.frame(picture.width, picture.height, key, name)
        Y, X = frame.size
        if self.crop == "none":
            seen = picture.resize((X, Y), Image.Resampling.LANCZOS)
        else:
            seen = ImageOps.fit(picture, (X, Y), Image.Resampling.LANCZOS, centering=self._place(key))
        return np.asarray(seen, dtype=np.uint8), frame

    def _place(self, key: str) -> tuple[float, float]:
        """Where the crop lies: the shares of what is cut off that are to the left of it and above it."""
        if self.crop != "random":
            return 0.5, 0.5
        # As `noise_seed`, which needs torch: the processes that decode images do not import it.
        digest = hashlib.sha256(f"{self.seed}\x1fcrop\x1f{key}".encode()).digest()
        x, y = (int.from_bytes(part, "big") / 2**32 for part in (digest[:4], digest[4:8]))
        return x, y

    def told(self, frame: Frame) -> Frame:
        """The frame that a model with micro-conditioning is told."""
        return frame if self.tells_frames else Frame.plain(frame.size)

    def settings(self, own_size: Size) -> dict[str, Any]:
        """What a plan records, for JSON: `size` of one size, None for the model's own; `sizes` of several; unusual rules."""
        one = self.sizes[0] if self.is_one_size else own_size
        content: dict[str, Any] = {"size": None if one == own_size else text_of(one)}
        if not self.is_one_size:
            content |= {"sizes": [text_of(size) for size in self.sizes]}
        plain = Framing(self.sizes)
        for name in ("crop", "most_lost", "tells_frames"):
            if getattr(self, name) != getattr(plain, name):
                content[name] = getattr(self, name)
        return content

    @staticmethod
    def of_settings(content: Mapping[str, object], own_size: Size, seed: int | None) -> "Framing":
        """The inverse of `settings`, with the run's seed. Raises ValueError for other content."""
        texts = content.get("sizes") or [content.get("size")]
        if not isinstance(texts, Sequence):
            raise ValueError(f"sizes is {texts!r}")
        sizes = tuple(size_of(None if text is None else str(text)) or own_size for text in texts)
        crop: Any = content.get("crop", "center")
        if crop not in get_args(Crop):
            raise ValueError(f"crop is {crop!r}")
        most_lost: Any = content.get("most_lost", 1.0)
        return Framing(sizes, crop, float(most_lost), bool(content.get("tells_frames", False)), seed or 0)


def lost(width: int, height: int, size: Size) -> float:
    """The share of a picture that is cut off when it is scaled to cover `size`."""
    Y, X = size
    ratio = (width * Y) / (height * X)
    return 1 - min(ratio, 1 / ratio)


def auto_sizes(resolution: int, step: int, most_aspect: float = 2.0, least_area: float = 0.75) -> tuple[Size, ...]:
    """Sizes of at most resolution² pixels whose sides are multiples of `step`, from upright to lying; the square is one of them.

    Each has the longest longer side that the area and the aspect ratio `most_aspect` allow; sizes of less than `least_area` of
    the square's area are left out. With step 64 and resolution 1024 these are 11 sizes, from 704×1408 to 1408×704. Empty if
    the resolution is below the step.
    """
    square = resolution // step * step
    upright: list[Size] = []
    for shorter in range(square - step, 0, -step):
        longer = min(resolution**2 // shorter, math.floor(most_aspect * shorter)) // step * step
        if longer <= shorter:
            continue
        if shorter * longer >= least_area * square**2:
            upright.append((longer, shorter))
        if longer + step > most_aspect * shorter:
            break
    if not square:
        return ()
    return (*reversed(upright), (square, square), *((shorter, longer) for longer, shorter in upright))
