"""Fetching and decoding images in Ray tasks: on any CPU of the cluster, ahead of the worker that needs them.

A task that dies takes only its own process along. Its rows are tried one by one, so that what kills the process ends in
quarantine and its neighbours do not. Tasks import no torch.
"""

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import ray

from ortho_core.errors import BadRow
from ortho_core.pairs import Pair, PairSet

if TYPE_CHECKING:
    from ortho_core.decoding import Decoded

#: How often a single row may kill the process that decodes it.
TRIES = 3


class RayDecoder:
    """`ortho_core.decoding.Decode` in tasks of `cpus` CPUs each; 0 shares the worker's own."""

    def __init__(self, pairs: PairSet, cpus: float) -> None:
        self.pairs = ray.put(pairs)
        #: Chunks on their way while one is used. Tasks of 0 CPUs would all run at once, each in a process of its own.
        self.ahead = 3 if cpus else 1
        self.task = ray.remote(num_cpus=cpus, max_retries=0)(_images)
        #: Processes that a decoding task took down with it.
        self.killed = 0
        self._lock = threading.Lock()

    def __call__(
        self, pairs: PairSet, chunks: Iterator[list[Pair]], size: tuple[int, int]
    ) -> "Iterator[list[Decoded]]":
        underway: deque[tuple[list[Pair], ray.ObjectRef]] = deque()
        for chunk in chunks:
            underway.append((chunk, self.task.remote(self.pairs, chunk, size)))
            if len(underway) > self.ahead:
                yield self._result(*underway.popleft(), size)
        while underway:
            yield self._result(*underway.popleft(), size)

    def _result(self, chunk: list[Pair], ref: "ray.ObjectRef", size: tuple[int, int]) -> "list[Decoded]":
        try:
            return list(zip(chunk, ray.get(ref), strict=True))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:  # the process or its node is gone, or the result with it
            self._died()
            return [(pair, self._alone(pair, size)) for pair in chunk]

    def _alone(self, pair: Pair, size: tuple[int, int]) -> np.ndarray | BadRow:
        """One row in a task of its own, as often as it may die."""
        for _ in range(TRIES):
            try:
                return ray.get(self.task.remote(self.pairs, [pair], size))[0]
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                self._died()
                reason = str(error).splitlines()[0]
        return BadRow("kills-decoder", f"row {pair.row}: decoding {pair.image!r} ended {TRIES} processes ({reason})")

    def _died(self) -> None:
        with self._lock:
            self.killed += 1


def _images(pairs: PairSet, chunk: list[Pair], size: tuple[int, int]) -> "list[np.ndarray | BadRow]":
    return pairs.images(chunk, size)
