"""Engines for images of several sizes: one for each size, of which one is evaluated at a time.

An image waits until the engine of its size has a free slot. Whenever an engine can fill all of its slots, it is evaluated, and
the others pause as they are, with their images in their slots. So slots are empty only at the end, or when the images that wait
are too few to fill the slots of any size. Which engine is evaluated when does not change an image's result.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.engine import Engine, Found
from ortho_core.estep.objective import Objective
from ortho_core.estep.queue import Request
from ortho_core.framing.frame import Size
from ortho_core.generators.base import at_size
from ortho_core.generators.protocol import OneStepGenerator


@dataclass
class _OneSize:
    """An engine, the images that wait for it, and the turns of those that it has."""

    engine: Engine
    waiting: deque[Request] = field(default_factory=deque)
    inside: list[Request] = field(default_factory=list)
    running: Iterator[Found | None] | None = None

    def __len__(self) -> int:
        return len(self.waiting) + len(self.inside)

    @property
    def is_full(self) -> bool:
        return len(self) >= self.engine.slots

    @property
    def turn(self) -> int:
        """The earliest turn of its images."""
        return min(request.turn for request in (*self.inside, *self.waiting))

    def step(self) -> Iterator[Found]:
        """Evaluate its slots once; yields the results of images that are done."""
        if self.running is None:
            self.running = self.engine.stepwise(self._requests())
        for found in self.running:
            if found is None:
                return
            self.inside = [request for request in self.inside if request.key is not found.key]
            yield found
        self.running = None

    def _requests(self) -> Iterator[Request | None]:
        while True:
            if self.waiting:
                self.inside.append(self.waiting.popleft())
                yield self.inside[-1]
            else:
                yield None


class Engines:
    """The engines of a generator. Each is made when the first image of its size comes."""

    def __init__(
        self,
        generator: OneStepGenerator,
        config: SearchConfig,
        slots: int,
        objective: Objective,
        on_event: Callable[[str], None] | None = None,
        sizes: Sequence[Size] = (),
    ) -> None:
        """`sizes` are the sizes (Y, X) of the images (none: the generator's own). The other arguments are those of `Engine`.

        Raises UserError if patches or regions do not divide the latent of the generator's own size.
        """
        self.generator, self.config, self.objective, self.on_event = generator, config, objective, on_event
        self.sizes: Sequence[Size] = sizes or (generator.image_size,)
        self._slots = slots
        self._engines: dict[Size, Engine] = {}
        self.of(self.sizes[0] if len(self.sizes) == 1 else generator.image_size)

    def of(self, size: Size | None) -> Engine:
        """The engine for images of a size (Y, X); None: of the generator's own. Raises UserError if the size does not fit."""
        size = self.generator.image_size if size is None else size
        if size not in self._engines:
            at = at_size(self.generator, size)
            self._engines[size] = Engine(at, self.config, self._slots, self.objective, self.on_event)
        return self._engines[size]

    @property
    def slots(self) -> int:
        """The slots of an engine; the fewest of any, if memory ran out and they were halved."""
        return min(engine.slots for engine in self._engines.values())

    @property
    def computed(self) -> int:
        """Evaluations computed so far by all engines, with those of empty slots."""
        return sum(engine.computed for engine in self._engines.values())

    def run(self, requests: Iterable[Request | None]) -> Iterator[Found]:
        """Assign every request; yields the results as they finish. None means, as in `Engine.run`, that none is available now."""
        if len(self.sizes) == 1:
            yield from self.of(self.sizes[0]).run(requests)
            return
        source, lanes = iter(requests), dict[Size, _OneSize]()
        lane: _OneSize | None = None
        while True:
            while not any(each.is_full for each in lanes.values()):
                if (request := next(source, None)) is None:
                    break
                size = request.size or self.generator.image_size
                lanes.setdefault(size, _OneSize(self.of(size))).waiting.append(request)
            occupied = [each for each in lanes.values() if len(each)]
            if not occupied:
                return
            if lane is None or not lane.is_full:
                # Where none is full, the rows of the earliest shard come first: then it is done, and another one comes.
                lane = min(occupied, key=lambda each: (not each.is_full, each.turn, -len(each)))
            yield from lane.step()
