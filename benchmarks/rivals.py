"""Alternative searches for the E-step, on the same problem and counted in the same evaluations.

`ours` and `reference` run the engine. The others, which the engine was compared with, are implemented here.

Axes: B images, C × H × W noise maps, d block dimension, N patches, m skew parameters.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.problem import FORWARD, Curve, Problem
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.optimizers import LBFGS
from ortho_core.noise.rotation import pack_skew, patchify, rotate, unpatchify
from ortho_core.noise.spaces import Rotations

Search = Callable[[Problem, int], Curve]


def by_engine(problem: Problem, config: AssignConfig) -> Curve:
    """The curve of the engine; every image makes all its steps."""
    histories = [torch.from_numpy(one.history["latent"]) for one in problem.search(config)]
    return Curve.of(list(torch.stack(histories, dim=1)))


def reference(problem: Problem, evaluations: int) -> Curve:
    """AdamW at 5e-4, as in the reference method."""
    return by_engine(
        problem, AssignConfig(patch_size=problem.patch_size, steps=evaluations, optimizer="adamw", lr=5e-4)
    )


def ours(problem: Problem, evaluations: int) -> Curve:
    """The default: L-BFGS from the generator's measured sensitivity."""
    return by_engine(problem, AssignConfig(patch_size=problem.patch_size, steps=evaluations, patience=0))


def plain_lbfgs(problem: Problem, evaluations: int) -> Curve:
    """The same without the sensitivity: the first curvature is a multiple of the identity."""
    config = AssignConfig(patch_size=problem.patch_size, steps=evaluations, patience=0, sensitivity_rank=0)
    return by_engine(problem, config)


def adamw_faster(problem: Problem, evaluations: int) -> Curve:
    """The reference with forty times its learning rate."""
    return by_engine(
        problem, AssignConfig(patch_size=problem.patch_size, steps=evaluations, optimizer="adamw", lr=2e-2)
    )


class Proposes(Protocol):
    """The interface of an optimiser for a batch of images that all begin and end together."""

    def propose(self, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor: ...


def in_skew(problem: Problem, evaluations: int, optimizer: Proposes) -> Curve:
    """Search with any optimiser of the packed skew parameters."""
    space = Rotations(problem.generator.latent_shape, problem.patch_size)
    base, x, losses = problem.base, space.start(problem.seeds), []
    for _ in range(evaluations):
        x = x.detach().requires_grad_(True)
        loss, gradient = problem.evaluate(space.noise(base, x))
        (pulled,) = torch.autograd.grad(space.noise(base, x), x, gradient)
        losses.append(loss)
        x = optimizer.propose(x.detach(), loss, pulled)
    return Curve.of(losses)


class ShrinkingLBFGS(LBFGS):
    """L-BFGS that repeats a failed step with 0.35 of its length, instead of using its curvature."""

    def propose(self, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        failed = self.best_loss.isfinite() & (loss >= self.best_loss)
        again = 0.35 * self.last_step
        proposed = super().propose(x, loss, grad)
        self.last_step = torch.where(failed[:, None], again, self.last_step)
        return torch.where(failed[:, None], self.best_x + again, proposed)


def shrinking_lbfgs(problem: Problem, evaluations: int) -> Curve:
    space = Rotations(problem.generator.latent_shape, problem.patch_size)
    start = space.start(problem.seeds)
    return in_skew(problem, evaluations, ShrinkingLBFGS(start, first_step=0.3, max_step=1.2))


class BarzilaiBorwein:
    """Gradient steps of length sᵀs/sᵀy (Barzilai & Borwein 1988); a failed step is repeated from the best point at 0.35."""

    def __init__(self, x: Tensor) -> None:
        self.best_x, self.best_grad, self.step = x, torch.zeros_like(x), torch.zeros_like(x)
        self.best_loss, self.rate = torch.full((len(x),), torch.inf), torch.zeros(len(x))

    def propose(self, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        better, seen = loss < self.best_loss, self.best_loss.isfinite()
        s, y = x - self.best_x, grad - self.best_grad
        curvature = (s * y).sum(1)
        rate = s.square().sum(1) / curvature.clamp_min(1e-20)
        self.rate = torch.where(seen & (curvature > 0), rate, self.rate)
        self.best_x = torch.where(better[:, None], x, self.best_x)
        self.best_grad = torch.where(better[:, None], grad, self.best_grad)
        self.best_loss = torch.where(better, loss, self.best_loss)
        first = 0.3 / self.best_grad.norm(dim=1).clamp_min(1e-20)
        step = -self.best_grad * torch.where(self.rate > 0, self.rate, first)[:, None]
        self.step = torch.where(better[:, None], step, 0.35 * self.step)
        return self.best_x + self.step * (1.2 / self.step.norm(dim=1, keepdim=True)).clamp_max(1.0)


def barzilai_borwein(problem: Problem, evaluations: int) -> Curve:
    space = Rotations(problem.generator.latent_shape, problem.patch_size)
    return in_skew(problem, evaluations, BarzilaiBorwein(space.start(problem.seeds)))


def riemannian_adam(problem: Problem, evaluations: int, rate: float = 0.6) -> Curve:
    """Adam on SO(d) with one second moment per image (Becigneul & Ganea 2019) and Cayley retraction at a moving origin."""
    space = Rotations(problem.generator.latent_shape, problem.patch_size)
    noise, losses = problem.base, []
    first = torch.zeros(len(noise), space.parameters)
    second = torch.zeros(len(noise), 1)
    for k in range(1, evaluations + 1):
        loss, gradient = problem.evaluate(noise)
        losses.append(loss)
        pulled = tangent(noise, gradient, problem.patch_size)
        first = 0.9 * first + 0.1 * pulled
        second = 0.99 * second + 0.01 * pulled.square().sum(1, keepdim=True)
        step = rate * (first / (1 - 0.9**k)) / ((second / (1 - 0.99**k)).sqrt() + 1e-12)
        noise = rotate(noise, -step / k**0.5, problem.patch_size)
    return Curve.of(losses)


def tangent(noise: Tensor, gradient: Tensor, patch_size: int) -> Tensor:
    """The gradient in the skew parameters of a further rotation, at the identity: (B, m)."""
    e, g = patchify(noise, patch_size), patchify(gradient, patch_size)
    outer = -2 * g.mT @ e
    return pack_skew(outer - outer.mT)


def moving_lbfgs(problem: Problem, evaluations: int) -> Curve:
    """L-BFGS whose origin follows the best rotation so far; the history is kept without transport."""
    noise, losses = problem.base, []
    best = noise
    space = Rotations(problem.generator.latent_shape, problem.patch_size)
    optimizer = LBFGS(torch.zeros(len(noise), space.parameters), first_step=0.3, max_step=1.2)
    for _ in range(evaluations):
        loss, gradient = problem.evaluate(noise)
        losses.append(loss)
        better = loss < optimizer.best_loss
        # The tangent at the evaluated rotation, in the body frame; this rotation becomes the origin.
        pulled = tangent(noise, gradient, problem.patch_size)
        best = torch.where(better[:, None, None, None], noise, best)
        optimizer.propose(optimizer.best_x + optimizer.last_step, loss, pulled)
        noise = rotate(best, optimizer.last_step, problem.patch_size)
    return Curve.of(losses)


def procrustes(problem: Problem, evaluations: int, step: float = 0.1, momentum: float = 0.5) -> Curve:
    """A gradient step in noise space, normalised per image, then the nearest rotation of ε (Schönemann 1966)."""
    base, p = problem.base, problem.patch_size
    C, H, W = problem.generator.latent_shape
    patches, noise, velocity, losses = patchify(base, p), base, torch.zeros_like(base), []
    length = base.flatten(1).norm(dim=1)
    for _ in range(evaluations):
        loss, gradient = problem.evaluate(noise)
        losses.append(loss)
        unit = gradient * (length / gradient.flatten(1).norm(dim=1).clamp_min(1e-20))[:, None, None, None]
        velocity = momentum * velocity - 2 * step * unit
        wanted = patchify(noise + velocity, p)
        U, _, Vh = torch.linalg.svd(wanted.mT @ patches)
        noise = unpatchify(patches @ (U @ Vh).mT, p, (C, H, W))
    return Curve.of(losses)


def line_search(problem: Problem, evaluations: int) -> Curve:
    """L-BFGS; each direction is tried at three lengths with forwards, and evaluated at the best: two evaluations per step."""
    space = Rotations(problem.generator.latent_shape, problem.patch_size)
    base, x = problem.base, space.start(problem.seeds)
    optimizer = LBFGS(x, first_step=0.3, max_step=1.2)
    losses, cost = [], []
    for k in range(max(1, evaluations // 2)):
        x = x.detach().requires_grad_(True)
        loss, gradient = problem.evaluate(space.noise(base, x))
        (pulled,) = torch.autograd.grad(space.noise(base, x), x, gradient)
        losses.append(loss)
        cost.append(1 + k * (1 + 3 * FORWARD))
        proposed = optimizer.propose(x.detach(), loss, pulled)
        step = proposed - optimizer.best_x
        tries = [optimizer.best_x + scale * step for scale in (0.5, 1.0, 2.0)]
        tried = torch.stack([problem.losses(space.noise(base, point)) for point in tries])
        x = torch.stack(tries)[tried.argmin(0), torch.arange(len(base))]
        optimizer.last_step = x - optimizer.best_x
    return Curve(cost, torch.stack(losses).cummin(0).values)


def best_of(problem: Problem, evaluations: int, candidates: int) -> Curve:
    """Ours, started from the best of several base noises, which forwards select."""
    maps = torch.stack([problem.base, *(problem.random_noise(k) for k in range(1, candidates))])
    chosen = torch.stack([problem.losses(each) for each in maps]).argmin(0)
    return from_noise(problem, evaluations, maps[chosen, torch.arange(len(chosen))], candidates * FORWARD)


def prompt_pool(problem: Problem, evaluations: int, size: int = 64) -> Curve:
    """Ours, started from the best noise of a pool that all images of a prompt share: one forward per noise and prompt."""
    generator, chosen = problem.generator, problem.base
    prompts = dict.fromkeys(problem.prompts)
    pool = torch.randn(size, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    for prompt in prompts:
        rows = [i for i, p in enumerate(problem.prompts) if p == prompt]
        with torch.no_grad():
            outputs = generator.denoise(pool, problem.condition[[rows[0]]].repeat_interleave(size))
        distances = torch.cdist(problem.targets[rows].flatten(1), outputs.flatten(1))
        chosen[rows] = pool[distances.argmin(1)]
    return from_noise(problem, evaluations, chosen, size * FORWARD * len(prompts) / len(chosen))


def from_noise(problem: Problem, evaluations: int, base: Tensor, before: float) -> Curve:
    """Ours, started from other base noises than those of the seeds."""

    class Chosen:
        """The problem's generator; image seeds are indices into the chosen noises, other seeds of the engine are unchanged."""

        def __getattr__(self, name: str) -> object:
            return getattr(problem.generator, name)

        def base_noise(self, seeds: list[int]) -> Tensor:
            return base[seeds] if max(seeds) < len(base) else problem.generator.base_noise(seeds)

    generator: Any = Chosen()
    swapped = replace(problem, generator=generator, seeds=list(range(len(base))))
    curve = ours(swapped, max(1, evaluations - int(before)))
    return Curve([before + cost for cost in curve.cost], curve.best)


def regressed_start(problem: Problem, evaluations: int, samples: int = 3072) -> Curve:
    """Ours, after one forward whose difference to the target is mapped to noise by a regression on the model's samples.

    ε' = ε + W·(E(x) - f(ε)), W by ridge regression of noise differences on output differences; then the nearest rotation.
    The evaluations of the regression are not counted: they are made once per model.
    """
    generator, p = problem.generator, problem.patch_size
    shape = generator.latent_shape
    stream = torch.Generator().manual_seed(1)
    differences = []
    with torch.no_grad():
        for _ in range(samples // len(problem.seeds)):
            pair = [torch.randn(len(problem.seeds), *shape, generator=stream) for _ in range(2)]
            out = [generator.denoise(noise, problem.condition) for noise in pair]
            differences.append([(b - a).flatten(1).double() for a, b in (pair, out)])
        dz, df = (torch.cat(parts) for parts in zip(*differences, strict=True))
        gram = df.mT @ df
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        W = torch.linalg.solve(gram + ridge, df.mT @ dz).float()
        base = problem.base
        missing = (problem.targets - generator.denoise(base, problem.condition)).flatten(1)
        wanted, patches = patchify(base + (missing @ W).view_as(base), p), patchify(base, p)
        U, _, Vh = torch.linalg.svd(wanted.mT @ patches)
    return from_noise(problem, evaluations, unpatchify(patches @ (U @ Vh).mT, p, shape), FORWARD)


#: Name in the table, search.
RIVALS: dict[str, Search] = {
    "reference: AdamW 5e-4": reference,
    "AdamW 2e-2": adamw_faster,
    "Riemannian Adam on SO(d), one second moment per image": riemannian_adam,
    "Procrustes steps with momentum": procrustes,
    "Barzilai-Borwein steps": barzilai_borwein,
    "L-BFGS, failed steps shrunk": shrinking_lbfgs,
    "L-BFGS on SO(d), the origin moving": moving_lbfgs,
    "L-BFGS, three lengths tried by forwards": line_search,
    "L-BFGS": plain_lbfgs,
    "L-BFGS from the generator's sensitivity (the default)": ours,
    "best of 4 base noises, then the default": lambda problem, n: best_of(problem, n, 4),
    "best of 16 base noises, then the default": lambda problem, n: best_of(problem, n, 16),
    "a pool of 64 noises per prompt, then the default": prompt_pool,
    "one forward through a regressed inverse, then the default": regressed_start,
}
