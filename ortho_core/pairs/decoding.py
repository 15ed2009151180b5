"""Batches of decoded images of a shard, prepared ahead of the computation. torch is imported only for the batches."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ortho_core.errors import BadRow
from ortho_core.framing.frame import Frame, Size
from ortho_core.framing.framing import Framing
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, Pair, Shard

#: One row, with its pixels (Y, X, 3) uint8 and its frame, or the fault.
Decoded = tuple[Pair, tuple[np.ndarray, Frame] | BadRow]
#: Decodes chunks of pairs in any process or thread, and returns them in order.
Decode = Callable[[PairSet, Iterator[list[Pair]], Framing], Iterator[list[Decoded]]]

#: Rows that are fetched and decoded together.
DECODED_AT_ONCE = 16
#: Chunks that are decoded ahead while one is used.
CHUNKS_DECODED_AHEAD = 2


def decode_in_threads(
    pairs: PairSet, chunks: Iterator[list[Pair]], framing: Framing, threads: int = 1
) -> Iterator[list[Decoded]]:
    """Decode in this process, `CHUNKS_DECODED_AHEAD` chunks ahead."""
    with ThreadPoolExecutor(threads) as pool:
        underway: deque[tuple[list[Pair], Future[list[tuple[np.ndarray, Frame] | BadRow]]]] = deque()

        def oldest() -> list[Decoded]:
            chunk, done = underway.popleft()
            return list(zip(chunk, done.result(), strict=True))

        for chunk in chunks:
            underway.append((chunk, pool.submit(pairs.framed, chunk, framing)))
            if len(underway) > CHUNKS_DECODED_AHEAD:
                yield oldest()
        while underway:
            yield oldest()


def decoded_batches(
    pairs: PairSet,
    shard: Shard,
    batch_size: int,
    framing: Framing,
    failures: list[Failure],
    decode: Decode = decode_in_threads,
    only: Container[int] | None = None,
) -> Iterator[tuple[list[Pair], Tensor]]:
    """Batches of pairs with their images (B, 3, Y, X) float32 in [0, 1], of one size each; bad rows go to `failures`.

    Each batch has `batch_size` good rows, but the last of each size. `only` are the numbers of the rows to read (None: all).
    """
    waiting: dict[Size, tuple[list[Pair], list[np.ndarray]]] = {size: ([], []) for size in framing.sizes}
    for chunk in decode(pairs, _chunks(usable_rows(pairs, shard, failures, only)), framing):
        for pair, outcome in chunk:
            if isinstance(outcome, BadRow):
                failures.append(Failure(pair.sample_id, pair.row, outcome.reason, str(outcome), pair.image))
                continue
            image, frame = outcome
            good, pixels = waiting[frame.size]
            good.append(replace(pair, pixels=hash_of(image), frame=frame))
            pixels.append(image)
        for good, pixels in waiting.values():
            while len(good) >= batch_size:
                yield good[:batch_size], to_images(pixels[:batch_size])
                del good[:batch_size], pixels[:batch_size]
    for good, pixels in waiting.values():
        if good:
            yield good, to_images(pixels)


def hash_of(pixels: np.ndarray) -> int:
    """64 bits of the BLAKE2 hash of an image (Y, X, 3) uint8."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).digest(), "little")


def to_images(pixels: list[np.ndarray]) -> Tensor:
    """B arrays (Y, X, 3) uint8 as a tensor (B, 3, Y, X) float32 in [0, 1]."""
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return stacked.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def usable_rows(
    pairs: PairSet, shard: Shard, failures: list[Failure], only: Container[int] | None = None
) -> Iterator[Pair]:
    """The rows that parse; the others go to `failures`. `only` are the numbers of the rows to read (None: all)."""
    for row in pairs.read(shard):
        number = row[0] if isinstance(row, tuple) else row.row
        if only is not None and number not in only:
            continue
        if isinstance(row, tuple):
            failures.append(Failure(f"{number:06d}", number, row[1].reason, str(row[1]), row[1].image))
        else:
            yield row


def _chunks(rows: Iterator[Pair]) -> Iterator[list[Pair]]:
    while chunk := list(itertools.islice(rows, DECODED_AT_ONCE)):
        yield chunk
