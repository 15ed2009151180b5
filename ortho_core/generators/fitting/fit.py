"""Fit a class-conditional generator to labelled images: to the nearest of many outputs, or against a discriminator.

The first is implicit maximum likelihood (Li & Malik 2018): each image is the target of some output, so no image is left out. The
second, a GAN, may leave images out, and often learns to ignore its noise: `diversity` measures that.

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

#: Updates over which the learning rate rises, and the fraction of it that remains at the end.
WARMUP, LAST = 50, 0.02


@dataclass(frozen=True)
class FitBatch:
    """One worker's share of an update: images in [-1, 1]; the class (one-hot) and the noises of each group."""

    images: Float[Tensor, "G R c Y X"]
    classes: Float[Tensor, "G K"]
    noise: Float[Tensor, "G J C H W"]


@runtime_checkable
class Fit(Protocol):
    """One objective of fitting. All workers make the same updates."""

    #: The names of the values that `update` returns; the first is the loss.
    terms: tuple[str, ...]

    def update(self, batch: FitBatch) -> Float[Tensor, " terms"]:
        """Make one update of the weights. Returns the terms as means over this worker's images."""
        ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def terms_of(config: FitConfig) -> tuple[str, ...]:
    """The names of the values that `update` returns."""
    return AdversarialFit.terms if config.objective == "gan" else NearestFit.terms


Wrap = Callable[[nn.Module], nn.Module]


def make_fit(generator: ClassGenerator, config: FitConfig, updates: int, wrap: Wrap = lambda network: network) -> Fit:
    """The fit for `config.objective`. `wrap` puts DDP around a network. A discriminator is initialised from the global seed."""
    return (AdversarialFit if config.objective == "gan" else NearestFit)(generator, config, updates, wrap)


class Learner:
    """A network with its optimiser, Adam. The rate rises over `WARMUP` updates, and falls along a cosine to `LAST` × its peak."""

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
    """Each image is matched to the nearest of its group's J outputs; the network is regressed on the image at that noise."""

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
        """For each image, the noise whose output is nearest to it among its group's."""
        G, J = batch.noise.shape[:2]
        made = self.learner.network(batch.noise.flatten(0, 1), batch.classes.repeat_interleave(J, 0))
        chosen = torch.cdist(batch.images.flatten(2), made.reshape(G, J, -1)).argmin(2)
        return batch.noise[torch.arange(G, device=chosen.device)[:, None], chosen]

    def state_dict(self) -> dict[str, object]:
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)


class AdversarialFit:
    """The hinge loss (Lim & Ye 2017): D pushes scores of real images above 1 and of generated ones below -1; the generator then
    raises the scores of its images.
    """

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
        # One call for both: each call advances the power iteration of spectral normalisation.
        scores = D.wrapped(torch.cat([batch.images.flatten(0, 1), made]), torch.cat([classes, classes]))
        real, fake = scores.chunk(2)
        discriminator_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        D.step(discriminator_loss)
        D.network.requires_grad_(False)
        loss = -D.network(self.generator.wrapped(second, classes), classes).mean()
        self.generator.step(loss)
        D.network.requires_grad_(True)
        return torch.stack([loss.detach(), discriminator_loss.detach()])

    def state_dict(self) -> dict[str, object]:
        return {"generator": self.generator.state_dict(), "discriminator": self.discriminator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
