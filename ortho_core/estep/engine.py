"""The E-step: find, for each target image, the noise that the generator already maps closest to it.

A fixed number of slots is evaluated together. When an image is done, the next image takes its slot. The shapes never change,
so the same kernels run for every image, and its result does not depend on which images share the batch.

Axes: S slots, B images, C × H × W noise maps, m parameters, K evaluations at most.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.at_once import free_cached
from ortho_core.device import to_device, to_host
from ortho_core.errors import OutOfMemory, ran_out_of_memory
from ortho_core.estep.candidates import best_seeds
from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.curvature import Sensitivity, measure
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.estep.queue import Request, _Queue, requests_of
from ortho_core.estep.slots import Slots, empty_slots, stack_rows
from ortho_core.estep.space import noise_space
from ortho_core.generators.protocol import Condition, OneStepGenerator

__all__ = ["AssignConfig", "Engine", "Found", "Request", "assign_encoded", "requests_of"]


@dataclass(frozen=True)
class Found:
    """The result of the search for one image; everything is on the CPU."""

    key: Any
    #: Seed of the base noise; with several candidates, of the best one.
    seed: int
    #: `space.noise(base, parameters)` is the assigned noise.
    parameters: Float[Tensor, " m"]
    #: Each term at every evaluation, (evaluations,); `total` was minimised.
    history: dict[str, np.ndarray]
    #: The loss or gradient was not finite at the last evaluation; the image must be quarantined.
    failed: bool
    #: Forwards that were spent to choose the base noise among the candidates.
    candidate_forwards: int = 0

    @property
    def evaluations(self) -> int:
        return len(self.history["total"])

    @property
    def best_step(self) -> int:
        """The index of the kept evaluation, which has the lowest total."""
        return int(self.history["total"].argmin())

    @property
    def initial_loss(self) -> float:
        return float(self.history["total"][0])

    def best(self, term: str) -> float:
        """A term at the kept evaluation."""
        return float(self.history[term][self.best_step])

    @property
    def failure(self) -> str:
        """The message of a failed image: the evaluation that was not finite, and its terms."""
        terms = ", ".join(f"{name} {values[-1]:g}" for name, values in self.history.items())
        return f"loss or gradient not finite at evaluation {self.evaluations} ({terms})"


@dataclass
class _Step:
    """The outcome of one step, on its way to the host: `done` flags (S,), and the images that left before the step."""

    done: Tensor
    owners: list[Request | None]
    left: list[tuple[list[Request], dict[str, Tensor]]] = field(default_factory=list)
    event: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()


class Engine:
    """Assigns noise to a stream of images. Not thread-safe; `run` may be called repeatedly.

    On a GPU the host reads a step's outcome one step later, while the next step is computed, so neither waits for the other.
    An image that is already done does not change in that extra step.
    """

    def __init__(
        self,
        generator: OneStepGenerator,
        config: SearchConfig,
        slots: int,
        objective: Objective | None = None,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        """Raises UserError if patches or regions do not divide the latent.

        `on_event` is called with a message when the slot count is halved. The default objective is the reconstruction that an
        `AssignConfig` describes.
        """
        if objective is None:
            if not isinstance(config, AssignConfig):
                raise TypeError("a search whose config is not an AssignConfig needs an objective")
            objective = Reconstruction(generator, config)
        self.generator, self.config, self.slots = generator, config, slots
        self.space = noise_space(config, generator.latent_shape)
        self.objective = objective
        self.on_event = on_event
        #: Evaluations computed so far, with those of empty slots: it shows how full the slots were.
        self.computed = 0
        self._sensitivity: Sensitivity | None = None
        #: The configuration, if the search chooses among several base noises; else None.
        self._choice = config if isinstance(config, AssignConfig) and config.candidates > 1 else None

    @property
    def lag(self) -> int:
        """Steps between a step and the host's reading of its outcome."""
        return 1 if self.generator.device.type == "cuda" else 0

    def run(self, requests: Iterable[Request | None]) -> Iterator[Found]:
        """Assign every request; yields the results as they finish. Same requests, order and slots give the same bits.

        A request of None means that none is available at the moment: the engine continues with the images in its slots, asks
        again, and ends when its slots are empty.
        """
        return (found for found in self.stepwise(requests) if found is not None)

    def stepwise(self, requests: Iterable[Request | None]) -> Iterator[Found | None]:
        """As `run`, with None after each evaluation of the slots: there the caller may pause, and run another engine."""
        waiting = _Queue(requests)
        while (first := waiting.peek()) is not None:
            try:
                yield from self._run(waiting, first)
                return
            except Exception as error:
                if isinstance(error, OutOfMemory) or self.slots == 1 or not ran_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Outside the handler, whose traceback would keep the tensors of the failed step alive.
            self.slots //= 2
            free_cached()
            waiting.restart()
            if self.on_event is not None:
                self.on_event(f"out of memory, continuing with {self.slots} images at once ({reason})")

    def _run(self, waiting: "_Queue", first: Request) -> Iterator[Found | None]:
        slots = self._empty_slots(first)
        owners: list[Request | None] = [None] * self.slots
        spent = [0] * self.slots
        underway: deque[_Step] = deque()
        left: list[tuple[list[Request], dict[str, Tensor]]] = []
        while True:
            self._fill(slots, owners, spent, waiting)
            if all(owner is None for owner in owners) and not underway and not left:
                return
            if any(owner is not None for owner in owners):
                done = slots.step()
                self.computed += self.slots
                spent = [n + 1 for n in spent]
            else:  # nothing left to compute, only to fetch
                done = torch.zeros_like(slots.active)
            step = _Step(to_host(done), list(owners), left)
            if self.generator.device.type == "cuda":
                step.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                step.event.record()
            underway.append(step)
            left = []
            out = {i for i, owner in enumerate(owners) if owner is not None and spent[i] >= self.config.steps}
            draining = all(owner is None for owner in owners)
            while len(underway) > (0 if draining else self.lag):
                step = underway.popleft()
                step.wait()
                # A flag counts only if the slot still holds the image it was raised for.
                flags = step.done.tolist()
                out |= {
                    i for i, owner in enumerate(owners) if owner is not None and flags[i] and step.owners[i] is owner
                }
                for images, found in step.left:
                    yield from self._found(images, found, slots.names)
                    waiting.finish(images)
            if out:
                index = sorted(out)
                images = [owner for i in index if (owner := owners[i]) is not None]
                found = slots.leave(to_device(torch.tensor(index), slots.x.device))
                left.append((images, {name: to_host(tensor) for name, tensor in found.items()}))
                for i in index:
                    owners[i] = None
            yield None

    def _empty_slots(self, like: Request) -> Slots:
        device, S, config = self.generator.device, self.slots, self.config
        if config.measures and self._sensitivity is None:
            self._sensitivity = measure(self.generator, config.sensitivity_rank, S)
        base = self.generator.base_noise([like.seed]).expand(S, -1, -1, -1)
        inputs = {name: tensor.to(device).expand(S, *(-1,) * tensor.dim()) for name, tensor in like.inputs.items()}
        return empty_slots(self.space, self.objective, config, self._sensitivity, base, inputs)

    def _fill(self, slots: Slots, owners: list[Request | None], spent: list[int], waiting: "_Queue") -> None:
        """Put the waiting images into the free slots, in order."""
        entering: list[tuple[int, Request]] = []
        for i, owner in enumerate(owners):
            if owner is None and (request := self._take(waiting)) is not None:
                owners[i], spent[i] = request, 0
                entering.append((i, request))
        if not entering:
            return
        requests = [request for _, request in entering]
        starts = self.space.start([request.seed for request in requests])
        initial = [
            starts[k] if request.start is None else request.start.to(starts) for k, request in enumerate(requests)
        ]
        device = self.generator.device
        slots.enter(
            to_device(torch.tensor([i for i, _ in entering]), device),
            self.generator.base_noise([request.seed for request in requests]),
            to_device(torch.stack(initial), device),
            stack_rows([request.inputs for request in requests]),
        )

    def _take(self, waiting: "_Queue") -> Request | None:
        """The next image, with its base noise chosen. Base noises are chosen for groups whose candidates fill whole batches."""
        if self._choice is not None and not waiting.settled:
            group = waiting.ahead(self.slots // math.gcd(self.slots, self._choice.candidates))
            if not group:
                return None
            if drawn := [request for request in group if request.start is None]:
                seeds, inputs = [request.seed for request in drawn], [request.inputs for request in drawn]
                where = self.generator, self.space, self.objective, self._choice
                best = iter(best_seeds(*where, seeds, inputs, self.slots))
                group = [replace(one, seed=next(best)) if one.start is None else one for one in group]
            waiting.settle(group)
        return waiting.take()

    def _found(self, images: list[Request], found: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[Found]:
        for k, request in enumerate(images):
            count = int(found["count"][k])
            history = found["history"][k, :, :count].numpy()
            yield Found(
                request.key,
                request.seed,
                found["parameters"][k],
                dict(zip(names, history, strict=True)),
                bool(found["failed"][k]),
                self._choice.candidates if self._choice is not None and request.start is None else 0,
            )


def assign_encoded(
    generator: OneStepGenerator,
    seeds: Sequence[int],
    condition: Condition,
    target_latents: Float[Tensor, "B ..."],
    images: Float[Tensor, "B 3 Y X"] | None,
    config: AssignConfig,
    *,
    slots: int = 16,
    starts: Sequence[Tensor | None] | None = None,
) -> list[Found]:
    """Assign the noise of B images whose encoded targets are all in memory, by reconstruction; results in the images' order.

    `seeds` decide the base noises (with several candidates, the first of each image). `starts` are the parameters to start
    from. Raises UserError if the patch size does not divide the latent.
    """
    objective = Reconstruction(generator, config)
    inputs = objective.inputs(condition, target_latents, images)
    engine = Engine(generator, config, min(slots, len(seeds)), objective)
    requests = requests_of(range(len(seeds)), seeds, inputs, starts)
    return sorted(engine.run(requests), key=lambda found: int(found.key))
