"""Fitting a class-conditional generator to labelled images: to the nearest of many tries, or against a discriminator.

The first is implicit maximum likelihood (Li & Malik 2018): every image is somebody's target, so nothing is left out, and the
noise decides which. The second may leave out what it likes, and often comes to ignore its noise: `diversity` tells.

Axes: G groups of an update (of this worker), R images of a group, all of one class, J noises of a group, K classes,
C × H × W noise, c × Y × X images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ortho_core.generators.class_conditional import ClassGenerator
from ortho_core.generators.fitting.config import FitConfig
from ortho_core.generators.fitting.discriminator import Discriminator

#: Updates over which the learning rate rises, and the part of it that is left at the end.
WARMUP, LAST = 50, 0.02


@dataclass(frozen=True)
class FitBatch:
    """One worker's share of an update: images in [-1, 1], the class of each group, the noises it has."""

    images: Float[Tensor, "G R c Y X"]
    classes: Float[Tensor, "G K"]
    noise: Float[Tensor, "G J C H W"]


@runtime_checkable
class Fit(Protocol):
    """One way of fitting. Every worker makes the same updates."""

    #: The names of what `update` returns; the first is the loss.
    terms: tuple[str, ...]

    def update(self, batch: FitBatch) -> Float[Tensor, " terms"]:
        """Change the weights; the terms are means over this worker's images."""
        ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def terms_of(config: FitConfig) -> tuple[str, ...]:
    """The names of what `update` returns."""
    return AdversarialFit.terms if config.objective == "gan" else NearestFit.terms


Wrap = Callable[[nn.Module], nn.Module]


def make_fit(generator: ClassGenerator, config: FitConfig, updates: int, wrap: Wrap = lambda network: network) -> Fit:
    """What the configuration asks for. `wrap` puts DDP around a network; a discriminator starts from the global seed."""
    return (AdversarialFit if config.objective == "gan" else NearestFit)(generator, config, updates, wrap)


class Learner:
    """A network with its optimiser: Adam, the rate rising over `WARMUP` updates and falling as a cosine to `LAST` of itself."""

    def __init__(self, network: nn.Module, lr: float, betas: tuple[float, float], updates: int, wrap: Wrap) -> None:
        self.network = network.requires_grad_(True).train().to(memory_format=torch.channels_last)
        self.wrapped = wrap(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=betas)

        def factor(update: int) -> float:
            fall = 0.5 * (1 + math.cos(math.pi * min(update / max(updates, 1), 1.0)))
            return min(1.0, (update + 1) / WARMUP) * (LAST + (1 - LAST) * fall)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def step(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    def state_dict(self) -> dict[str, object]:
        return {k: getattr(self, k).state_dict() for k in ("network", "optimizer", "schedule")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)


class NearestFit:
    """Of each group's J outputs every image takes the nearest, and is regressed on its noise."""

    terms: tuple[str, ...] = ("loss",)

    def __init__(self, generator: ClassGenerator, config: FitConfig, updates: int, wrap: Wrap) -> None:
        self.learner = Learner(generator.network, config.rate, (0.9, 0.99), updates, wrap)

    def update(self, batch: FitBatch) -> Tensor:
        images = batch.images.flatten(0, 1)
        noise = self.nearest(batch).flatten(0, 1)
        classes = batch.classes.repeat_interleave(batch.images.shape[1], 0)
        loss = (self.learner.wrapped(noise, classes) - images).square().mean()
        self.learner.step(loss)
        return loss.detach()[None]

    @torch.no_grad()
    def nearest(self, batch: FitBatch) -> Float[Tensor, "G R C H W"]:
        """For each image the noise of its group whose output is nearest to it."""
        G, J = batch.noise.shape[:2]
        made = self.learner.network(batch.noise.flatten(0, 1), batch.classes.repeat_interleave(J, 0))
        chosen = torch.cdist(batch.images.flatten(2), made.reshape(G, J, -1)).argmin(2)
        return batch.noise[torch.arange(G, device=chosen.device)[:, None], chosen]

    def state_dict(self) -> dict[str, object]:
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)


class AdversarialFit:
    """The hinge loss (Lim & Ye 2017): D pushes real above 1 and made below -1, then the generator pushes D of made up."""

    terms: tuple[str, ...] = ("loss", "discriminator")

    def __init__(self, generator: ClassGenerator, config: FitConfig, updates: int, wrap: Wrap) -> None:
        betas = (0.0, 0.9)
        self.generator = Learner(generator.network, config.rate, betas, updates, wrap)
        discriminator = Discriminator(generator.config.image_shape, len(generator.config.classes)).to(generator.device)
        self.discriminator = Learner(discriminator, 2 * config.rate, betas, updates, wrap)

    def update(self, batch: FitBatch) -> Tensor:
        R = batch.images.shape[1]
        classes = batch.classes.repeat_interleave(R, 0)
        first, second = (batch.noise[:, part].flatten(0, 1) for part in (slice(R), slice(R, None)))
        D = self.discriminator
        with torch.no_grad():
            made = self.generator.network(first, classes)
        # In one call: the normalisation of its weights goes a step on at every call.
        scores = D.wrapped(torch.cat([batch.images.flatten(0, 1), made]), torch.cat([classes, classes]))
        real, fake = scores.chunk(2)
        told = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        D.step(told)
        D.network.requires_grad_(False)
        loss = -D.network(self.generator.wrapped(second, classes), classes).mean()
        self.generator.step(loss)
        D.network.requires_grad_(True)
        return torch.stack([loss.detach(), told.detach()])

    def state_dict(self) -> dict[str, object]:
        return {"generator": self.generator.state_dict(), "discriminator": self.discriminator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
