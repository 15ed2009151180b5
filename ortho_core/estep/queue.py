"""The images that wait for a slot of the engine."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ortho_core.errors import OutOfMemory, ran_out_of_memory
from ortho_core.framing.frame import Size


@dataclass(frozen=True)
class Request:
    """One image to be assigned. `inputs` are its inputs of the objective, without a batch axis, on the device."""

    key: object
    #: Seed of the base noise; with several candidates, of the first one.
    seed: int
    inputs: Mapping[str, Tensor]
    #: Parameters (m,) to start from, from an earlier assignment with the same seed; the base noise is then kept. None: start
    #: from the default of the noise space.
    start: Tensor | None = None
    #: The size (Y, X) of its image; None: the generator's own.
    size: Size | None = None
    #: The number of its shard, counted as they come: with several sizes, earlier ones are finished first.
    turn: int = 0


def requests_of(
    keys: Sequence[object],
    seeds: Sequence[int],
    inputs: Mapping[str, Tensor],
    starts: Sequence[Tensor | None] | None = None,
    *,
    size: Size | None = None,
    turn: int = 0,
) -> Iterator[Request]:
    """One request per key, from inputs with a batch axis; `inputs` may have more rows than there are keys."""
    for i, (key, seed) in enumerate(zip(keys, seeds, strict=True)):
        rows = {name: tensor[i] for name, tensor in inputs.items()}
        yield Request(key, seed, rows, starts[i] if starts is not None else None, size, turn)


class _Queue:
    """The requests in order. Requests that were taken and did not finish can be put back, to start again."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._source = iter(requests)
        self._next: deque[Request] = deque()
        self._taken: list[Request] = []
        #: Number of requests at the head whose base noise is already chosen.
        self.settled = 0

    def peek(self) -> Request | None:
        if not self._next:
            self._read()
        return self._next[0] if self._next else None

    def _read(self) -> bool:
        """Append one more request to the queue; False if none is available at the moment."""
        try:
            request = next(self._source, None)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            # The engine cannot retry: a generator that raised yields nothing more, and its rows would be lost.
            reason = str(error).splitlines()[0]
            raise OutOfMemory(f"out of memory while images were encoded, use fewer slots ({reason})") from error
        if request is not None:
            self._next.append(request)
        return request is not None

    def ahead(self, count: int) -> list[Request]:
        """The next requests, at most `count`; they stay in the queue."""
        while len(self._next) < count and self._read():
            pass
        return list(itertools.islice(self._next, count))

    def settle(self, chosen: list[Request]) -> None:
        """Replace the next requests by `chosen`, whose base noise is chosen."""
        for i, request in enumerate(chosen):
            self._next[i] = request
        self.settled = len(chosen)

    def take(self) -> Request | None:
        if self.peek() is None:
            return None
        request = self._next.popleft()
        self.settled = max(0, self.settled - 1)
        self._taken.append(request)
        return request

    def finish(self, images: list[Request]) -> None:
        finished = {id(image) for image in images}
        self._taken = [request for request in self._taken if id(request) not in finished]

    def restart(self) -> None:
        self._next.extendleft(reversed(self._taken))
        self.settled += len(self._taken)
        self._taken = []
