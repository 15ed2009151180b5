"""A sample of a pair set's rows, spread over the whole set, each read and decoded as the E-step does it."""

import hashlib
import io
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ortho_core.errors import BadRow
from ortho_core.pairs.images import FORMATS, decode_picture
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, Pair, Shard, row_name

#: Consecutive rows of a place. Places are read from their start, and of Parquet the whole row group: many are slow.
ROWS_OF_A_PLACE = 32
#: Images fetched and decoded side by side: an object store answers late, and decoders leave Python's lock.
PICTURES_AT_ONCE = 8
#: Side of the small picture that images are compared by.
SIDE = 16


@dataclass(frozen=True)
class SeenRow:
    """A usable row as it was looked at. The size is that of the upright picture, in pixels."""

    pair: Pair
    width: int
    height: int
    #: As Pillow calls it: `JPEG`.
    kind: str
    #: How its pixels are kept, in words.
    mode: str
    #: Of the decoded pixels and their size.
    digest: bytes = field(repr=False)
    #: (SIDE * SIDE * 3,) uint8: the picture, very small.
    small: np.ndarray = field(repr=False)

    @property
    def name(self) -> str:
        """What its owner calls the row."""
        return row_name(self.pair.image, self.pair.sample_id)


def spread(shards: list[Shard], rows: int) -> list[Shard]:
    """Some of the shards, evenly spread from the first on, that have about so many rows together."""
    places = min(len(shards), -(-rows * len(shards) // sum(shard.rows for shard in shards)))
    return [shards[i * len(shards) // places] for i in range(places)]


def look_at(pairs: PairSet, rows: int) -> Iterator[SeenRow | Failure]:
    """At most so many rows of the set, in order: each as it was seen, or why it cannot be used.

    Which rows depends on the set and on the number alone; every row where the set has no more. Raises UserError where the set
    cannot be read.
    """
    places = spread(pairs.shards(min(ROWS_OF_A_PLACE, rows)), rows)
    wanted = itertools.islice((row for place in places for row in pairs.read(place)), rows)
    with ThreadPoolExecutor(PICTURES_AT_ONCE) as pool:
        underway: deque[Failure | Future[SeenRow | Failure]] = deque()
        for row in wanted:
            if isinstance(row, tuple):
                number, bad = row
                underway.append(Failure(f"{number:06d}", number, bad.reason, str(bad)))
            else:
                underway.append(pool.submit(see, pairs, row))
            if len(underway) > 2 * PICTURES_AT_ONCE:
                yield _outcome(underway.popleft())
        while underway:
            yield _outcome(underway.popleft())


def _outcome(one: Failure | Future[SeenRow | Failure]) -> SeenRow | Failure:
    return one if isinstance(one, Failure) else one.result()


def see(pairs: PairSet, pair: Pair) -> SeenRow | Failure:
    """Fetch and decode the image of one row."""
    try:
        content = pairs.fetch(pair)
        picture = picture_of(pairs, pair, content)
    except BadRow as bad:
        return Failure(pair.sample_id, pair.row, bad.reason, str(bad))
    digest = hashlib.sha256(f"{picture.size}".encode())
    digest.update(picture.tobytes())
    small = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    kind, mode = told_by(content)
    return SeenRow(
        replace(pair, content=None), *picture.size, kind, mode, digest.digest(), np.asarray(small, np.uint8).reshape(-1)
    )


def picture_of(pairs: PairSet, pair: Pair, content: bytes | None = None) -> Image.Image:
    """The image of a row at its own size, upright, in RGB; `content` is its file, where it was fetched. Raises BadRow."""
    name = f"row {pair.row}: {pair.image.rpartition('/')[2]}"
    return decode_picture(pairs.fetch(pair) if content is None else content, name, pairs.fields.max_image_pixels)


def told_by(content: bytes) -> tuple[str, str]:
    """The format of an image file, and in words how its pixels are kept, from its head."""
    with suppress(Exception), Image.open(io.BytesIO(content), formats=FORMATS) as opened:  # broken heads raise anything
        return str(opened.format), mode_in_words(opened)
    return "other", "not told by its head"


def mode_in_words(opened: Image.Image) -> str:
    mode = opened.mode
    if opened.has_transparency_data:
        return "with transparency"
    if mode.startswith("I;16"):
        return "grey of 16 bits"
    usual = {
        "RGB": "colour",
        "L": "grey",
        "P": "colour with a palette",
        "CMYK": "CMYK",
        "1": "black and white",
        "I": "grey of 32 bits",
        "F": "grey as floats",
        "YCbCr": "colour",
    }
    return usual.get(mode, mode)
