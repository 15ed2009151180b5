"""A sample of a pair set's rows, spread over the whole set. Each row is read and decoded as in the E-step."""

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

#: Consecutive rows that are read at one place of the set. Many small places are slow: for Parquet each costs a whole row group.
ROWS_OF_A_PLACE = 32
#: Images that are fetched and decoded in parallel: object stores have latency, and decoders release Python's lock.
PICTURES_AT_ONCE = 8
#: Side in pixels of the small picture that is used to compare images.
SIDE = 16


@dataclass(frozen=True)
class SeenRow:
    """A usable row of the sample. The size is that of the upright picture, in pixels."""

    pair: Pair
    width: int
    height: int
    #: Pillow's name of the format: `JPEG`.
    kind: str
    #: The pixel format, in words.
    mode: str
    #: SHA-256 of the decoded pixels and their size.
    digest: bytes = field(repr=False)
    #: (SIDE * SIDE * 3,) uint8: the picture at SIDE × SIDE pixels.
    small: np.ndarray = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the row in messages to the user."""
        return row_name(self.pair.image, self.pair.sample_id)


def spread(shards: list[Shard], rows: int) -> list[Shard]:
    """Some of the shards, evenly spread from the first on, with about `rows` rows together."""
    places = min(len(shards), -(-rows * len(shards) // sum(shard.rows for shard in shards)))
    return [shards[i * len(shards) // places] for i in range(places)]


def look_at(pairs: PairSet, rows: int) -> Iterator[SeenRow | Failure]:
    """A sample of at most `rows` rows of the set, in order: each as a SeenRow, or as a Failure with the reason.

    The choice depends only on the set and on `rows`; a set with fewer rows is read completely. Raises UserError if the set cannot
    be read.
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
    """The image of a row at its own size, upright, in RGB; `content` is its file, if already fetched. Raises BadRow."""
    name = f"row {pair.row}: {pair.image.rpartition('/')[2]}"
    return decode_picture(pairs.fetch(pair) if content is None else content, name, pairs.fields.max_image_pixels)


def told_by(content: bytes) -> tuple[str, str]:
    """The format of an image file and its pixel format in words, from its header."""
    with (
        suppress(Exception),
        Image.open(io.BytesIO(content), formats=FORMATS) as opened,
    ):  # broken headers raise anything
        return str(opened.format), mode_in_words(opened)
    return "other", "unknown pixel format"


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
