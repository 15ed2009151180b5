"""Fetches and decodes images in a separate process for each worker: on any CPU of the cluster, before a slot needs them.

If an image crashes the process, the worker and its model stay alive. The rows of the lost chunk are decoded again one by one,
so only the row with that image is quarantined. The process imports no torch.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ortho_core.errors import BadRow
from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair

if TYPE_CHECKING:
    from ortho_core.pairs.decoding import Decoded

#: A row is quarantined after this many crashes of the process that decodes it alone.
TRIES = 3
#: Chunks that are requested while one is used.
CHUNKS_ASKED_AHEAD = 3
#: Threads of a process: object stores answer slowly, and decoders release Python's lock.
THREADS = 8


class Decoder:
    """The decoding process, an actor that lives as long as its worker. With tasks instead, Ray would start a process for each
    one if no CPU is free."""

    def __init__(self, pairs: PairSet) -> None:
        self.pairs, self.pool = pairs, ThreadPoolExecutor(THREADS)

    def images(self, chunk: list[Pair], framing: Framing) -> list[tuple[np.ndarray, Frame] | BadRow]:
        """Each pair's pixels (Y, X, 3) uint8 and its frame, or what is wrong with it."""
        return [one for (one,) in self.pool.map(lambda pair: self.pairs.framed([pair], framing), chunk)]


class RayDecoder:
    """`Decoder` in another process with `cpus` CPUs; with 0 it is on this node if possible."""

    def __init__(self, pairs: PairSet, cpus: float) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options: dict[str, object] = {} if cpus else {"scheduling_strategy": here}
        self._start = ray.remote(num_cpus=cpus, max_restarts=0, **options)(Decoder).remote
        self._pairs = ray.put(pairs)
        self._process = self._start(self._pairs)
        self._lock = threading.Lock()
        #: Number of processes that died.
        self.killed = 0

    def __call__(self, pairs: PairSet, chunks: Iterator[list[Pair]], framing: Framing) -> "Iterator[list[Decoded]]":
        underway: deque[tuple[list[Pair], ActorHandle, ray.ObjectRef]] = deque()
        for chunk in chunks:
            process = self._process
            underway.append((chunk, process, process.images.remote(chunk, framing)))
            if len(underway) > CHUNKS_ASKED_AHEAD:
                yield self._result(*underway.popleft(), framing)
        while underway:
            yield self._result(*underway.popleft(), framing)

    def _result(
        self, chunk: list[Pair], process: ActorHandle, ref: "ray.ObjectRef", framing: Framing
    ) -> "list[Decoded]":
        try:
            return list(zip(chunk, ray.get(ref), strict=True))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:  # the process, its node or the result is lost
            self._replace(process)
            return [(pair, self._alone(pair, framing)) for pair in chunk]

    def _alone(self, pair: Pair, framing: Framing) -> tuple[np.ndarray, Frame] | BadRow:
        """Decode one row alone, at most TRIES times."""
        for _ in range(TRIES):
            process = self._process
            try:
                (outcome,) = ray.get(process.images.remote([pair], framing))
                return outcome
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                self._replace(process)
                reason = type(error).__name__
        return BadRow("kills-decoder", f"row {pair.row}: decoding {pair.image!r} crashed {TRIES} processes ({reason})")

    def _replace(self, dead: ActorHandle) -> None:
        """Start another process, unless another thread has done so."""
        with self._lock:
            if self._process is dead:
                self.killed += 1
                ray.kill(dead)  # it may be alive but unreachable
                self._process = self._start(self._pairs)
