"""What the crop takes of the pictures of a set, from the headers of a few of its images."""

import io
import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from ortho_core.errors import BadRow
from ortho_core.framing.frame import Size
from ortho_core.framing.framing import Framing, lost
from ortho_core.framing.image_size import text_of
from ortho_core.pairs.images import FORMATS, ORIENTATION
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair
from ortho_core.pairs.survey.sample import PICTURES_AT_ONCE, spread

#: Images whose headers are read, evenly spread over the set, and the rows that are read at one place of it.
HEADERS, AT_A_PLACE = 64, 4
#: The orientations of EXIF that turn a picture on its side.
ON_SIDE = (5, 6, 7, 8)


@dataclass(frozen=True)
class Taken:
    """What a framing takes of some pictures; shares are of a picture's area."""

    pictures: int
    mean_lost: float
    most_lost: float
    #: The same mean with one square instead.
    square_lost: float
    #: Pictures that lose more than the framing allows, and so are not used.
    too_extreme: int
    #: Pictures that are enlarged, and the largest factor.
    enlarged: int
    most_enlarged: float
    #: Number of pictures of each size that has some, `WIDTHxHEIGHT`.
    sizes: dict[str, int]

    @staticmethod
    def of(framing: Framing, pictures: Sequence[Size]) -> "Taken":
        """Of at least one picture; `pictures` are their own sizes (Y, X)."""
        chosen = [framing.nearest(X, Y) for Y, X in pictures]
        losses = [lost(X, Y, size) for (Y, X), size in zip(pictures, chosen, strict=True)]
        kept = [k for k, loss in enumerate(losses) if loss <= framing.most_lost]
        used = [losses[k] for k in kept]
        scales = [max(chosen[k][0] / pictures[k][0], chosen[k][1] / pictures[k][1]) for k in kept]
        counts = Counter(text_of(chosen[k]) for k in kept)
        return Taken(
            pictures=len(pictures),
            mean_lost=statistics.fmean(used) if used else 0.0,
            most_lost=max(used, default=0.0),
            square_lost=statistics.fmean(lost(X, Y, (1, 1)) for Y, X in pictures),
            too_extreme=len(losses) - len(used),
            enlarged=sum(scale > 1 for scale in scales),
            most_enlarged=max(scales, default=1.0),
            sizes={text: counts[text] for text in map(text_of, framing.sizes) if counts[text]},
        )


def some_sizes(pairs: PairSet, most: int = HEADERS) -> list[Size]:
    """The sizes (Y, X) of some pictures of the set, upright; those that cannot be read are left out.

    Only headers are decoded. Raises UserError if the set cannot be read.
    """
    places = spread(pairs.shards(AT_A_PLACE), most)
    rows = [row for place in places for row in pairs.read(place) if isinstance(row, Pair)][:most]
    with ThreadPoolExecutor(PICTURES_AT_ONCE) as pool:
        return [size for size in pool.map(lambda row: _size(pairs, row), rows) if size is not None]


def _size(pairs: PairSet, pair: Pair) -> Size | None:
    try:
        with Image.open(io.BytesIO(pairs.fetch(pair)), formats=FORMATS) as opened:
            X, Y = opened.size
            return (X, Y) if opened.getexif().get(ORIENTATION) in ON_SIDE else (Y, X)
    except BadRow:
        return None
    except Exception:  # broken files raise anything; the run quarantines their rows
        return None
