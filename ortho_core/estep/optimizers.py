"""Optimisers of the noise parameters that treat every image on its own: nothing is ever averaged over the batch.

Axes: B images (slots), m parameters, M remembered L-BFGS pairs. Each optimiser answers "where to evaluate next" from the
loss and gradient at the last point; no value leaves the device. A slot's state is made fresh when another image enters it.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.linalg import vector_norm


@runtime_checkable
class Optimizer(Protocol):
    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        """The next point (B, m) to evaluate, given loss and gradient at `x`, the point proposed last."""
        ...

    def reset(self, slots: Int[Tensor, " k"]) -> None:
        """Forget everything about these slots: their next point is an image's first."""
        ...


class AdamW:
    """The reference optimiser: AdamW on a full matrix `raw` with A = raw - rawᵀ, betas (0.9, 0.999), no weight decay.

    The entries raw_ij and raw_ji get opposite gradients, hence opposite updates (Loshchilov & Hutter 2019, eq. for m, v),
    so the entry A_ij above the diagonal moves by exactly twice one Adam update: that is what is computed here.
    """

    def __init__(self, like: Float[Tensor, "B m"], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.lr, self.betas, self.eps = lr, betas, 1e-8
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        # Images enter at different times, so each counts its own steps; float64 as Python's own powers would be, but on
        # Apple's GPUs, which have none: there the first steps are off by up to 3e-5 of themselves.
        exact = torch.float32 if like.device.type == "mps" else torch.float64
        self.steps = torch.zeros(len(like), 1, dtype=exact, device=like.device)

    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        self.steps += 1
        b1, b2 = self.betas
        self.first = b1 * self.first + (1 - b1) * grad
        self.second = b2 * self.second + (1 - b2) * grad.square()
        first = self.first / (1 - b1**self.steps).to(x)
        second = self.second / (1 - b2**self.steps).to(x)
        return x - 2 * self.lr * first / (second.sqrt() + self.eps)

    def reset(self, slots: Int[Tensor, " k"]) -> None:
        for state in (self.first, self.second, self.steps):
            state[slots] = 0


def identity(vectors: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
    """The metric of an optimiser that knows nothing of the generator."""
    return vectors


class LBFGS:
    """Limited-memory BFGS (Nocedal 1980) with one history and one step size per image, and no line search.

    A step that lowers the image's loss is kept. One that does not is undone: the next trial goes back to the best point
    and takes at most half of the failed step's length along a direction that has learned from it, so every evaluation is
    either progress or information. The recursion starts from γ·metric, with `metric` the inverse of a first guess of the
    Hessian up to a factor (`curvature.CurvatureModel`) and γ from the newest pair. The first step has norm `first_step`; none
    is longer than `max_step`.
    """

    def __init__(
        self,
        like: Float[Tensor, "B m"],
        metric: Callable[[Tensor], Tensor] = identity,
        *,
        first_step: float,
        max_step: float,
        memory: int = 6,
    ) -> None:
        B, m = like.shape
        self.metric, self.memory = metric, memory
        self.first_step, self.max_step = first_step, max_step
        self.best_x, self.best_grad, self.last_step = (torch.zeros_like(like) for _ in range(3))
        self.best_loss = like.new_full((B,), float("inf"))
        self.s, self.y = like.new_zeros(memory, B, m), like.new_zeros(memory, B, m)
        #: 1 / (sᵀy) where the pair is in use, 0 where there is none.
        self.rho = like.new_zeros(memory, B)
        #: γ, 0 before the first pair.
        self.gamma = like.new_zeros(B)

    def reset(self, slots: Int[Tensor, " k"]) -> None:
        self.best_loss[slots] = float("inf")
        for state in (self.best_x, self.best_grad, self.last_step, self.gamma):
            state[slots] = 0
        for history in (self.s, self.y, self.rho):
            history[:, slots] = 0

    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        finite = loss.isfinite() & grad.isfinite().all(1)
        grad = torch.where(finite[:, None], grad, 0)
        better = finite & (loss < self.best_loss)
        seen = self.best_loss.isfinite()
        self._remember(x - self.best_x, grad - self.best_grad, finite & seen)
        self.best_x = torch.where(better[:, None], x, self.best_x)
        self.best_grad = torch.where(better[:, None], grad, self.best_grad)
        self.best_loss = torch.where(better, loss, self.best_loss)
        step = -self._precondition(self.best_grad)
        # Without curvature yet, or where the quasi-Newton direction does not descend, go down the metric's gradient.
        plain = (self.gamma == 0) | ((step * self.best_grad).sum(1) >= 0)
        descent = -self.metric(self.best_grad)
        descent = descent * (self.first_step / vector_norm(descent, dim=1).clamp_min(1e-20))[:, None]
        step = torch.where(plain[:, None], descent, step)
        longest = torch.where(better, self.max_step, 0.5 * vector_norm(self.last_step, dim=1))
        self.last_step = step * (longest / vector_norm(step, dim=1).clamp_min(1e-12)).clamp_max(1.0)[:, None]
        return self.best_x + self.last_step

    def _remember(self, s: Float[Tensor, "B m"], y: Float[Tensor, "B m"], usable: Bool[Tensor, " B"]) -> None:
        """Push (s, y) into each image's history where the curvature sᵀy is positive."""
        curvature = (s * y).sum(1)
        usable = usable & (curvature > 1e-8 * vector_norm(s, dim=1) * vector_norm(y, dim=1)) & (curvature > 0)
        keep = usable[None, :, None]
        self.s = torch.where(keep, torch.cat([self.s[1:], s[None]]), self.s)
        self.y = torch.where(keep, torch.cat([self.y[1:], y[None]]), self.y)
        rho = 1 / torch.where(usable, curvature, 1)
        self.rho = torch.where(usable[None], torch.cat([self.rho[1:], rho[None]]), self.rho)
        scale = curvature / (y * self.metric(y)).sum(1).clamp_min(1e-20)
        self.gamma = torch.where(usable, scale, self.gamma)

    def _precondition(self, grad: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
        """H·grad by the two-loop recursion (Nocedal & Wright, algorithm 7.4), newest pair last."""
        q, alphas = grad, []
        for k in reversed(range(self.memory)):
            alpha = self.rho[k] * (self.s[k] * q).sum(1)
            q = q - alpha[:, None] * self.y[k]
            alphas.append(alpha)
        q = self.metric(q) * self.gamma[:, None]
        for k, alpha in zip(range(self.memory), reversed(alphas), strict=True):
            beta = self.rho[k] * (self.y[k] * q).sum(1)
            q = q + (alpha - beta)[:, None] * self.s[k]
        return q
