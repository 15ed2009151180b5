"""Optimisers of the skew parameters that treat every image on its own: nothing is ever averaged over the batch.

Axes: B images, m parameters, M remembered L-BFGS pairs. Each optimiser answers "where to evaluate next" from the loss and
gradient at the last point; no value leaves the device.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Optimizer(Protocol):
    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        """The next point (B, m) to evaluate, given loss and gradient at `x`, the point proposed last."""
        ...


class AdamW:
    """The reference optimiser: AdamW on a full matrix `raw` with A = raw - rawᵀ, betas (0.9, 0.999), no weight decay.

    The entries raw_ij and raw_ji get opposite gradients, hence opposite updates (Loshchilov & Hutter 2019, eq. for m, v),
    so the entry A_ij above the diagonal moves by exactly twice one Adam update: that is what is computed here.
    """

    def __init__(self, x: Float[Tensor, "B m"], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.lr, self.betas, self.eps, self.steps = lr, betas, 1e-8, 0
        self.first, self.second = torch.zeros_like(x), torch.zeros_like(x)

    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        self.steps += 1
        b1, b2 = self.betas
        self.first = b1 * self.first + (1 - b1) * grad
        self.second = b2 * self.second + (1 - b2) * grad.square()
        first = self.first / (1 - b1**self.steps)
        second = self.second / (1 - b2**self.steps)
        return x - 2 * self.lr * first / (second.sqrt() + self.eps)


class LBFGS:
    """Limited-memory BFGS (Nocedal 1980) with one history and one step size per image, and no line search.

    A step that lowers the image's loss is kept. One that does not is undone: the next trial goes back to the best point
    and takes `shrink` of the failed step, so every evaluation is either progress or information. Steps are bounded by
    `max_step` in the norm of the skew parameters (radians, to first order half a rotation angle); the first has norm
    `first_step`.
    """

    def __init__(
        self,
        x: Float[Tensor, "B m"],
        *,
        memory: int = 6,
        first_step: float = 0.3,
        max_step: float = 1.2,
        shrink: float = 0.35,
    ) -> None:
        B, m = x.shape
        self.memory, self.first_step, self.max_step, self.shrink = memory, first_step, max_step, shrink
        self.best_x, self.best_grad = x.clone(), torch.zeros_like(x)
        self.best_loss = x.new_full((B,), float("inf"))
        self.last_step = torch.zeros_like(x)
        self.s, self.y = x.new_zeros(memory, B, m), x.new_zeros(memory, B, m)
        #: 1 / (sᵀy) where the pair is in use, 0 where there is none.
        self.rho = x.new_zeros(memory, B)
        self.gamma = x.new_zeros(B)

    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        finite = loss.isfinite() & grad.isfinite().all(1)
        grad = torch.where(finite[:, None], grad, 0)
        better = finite & (loss < self.best_loss)
        seen = self.best_loss.isfinite()
        self._remember(x - self.best_x, grad - self.best_grad, finite & seen)
        self.best_x = torch.where(better[:, None], x, self.best_x)
        self.best_grad = torch.where(better[:, None], grad, self.best_grad)
        self.best_loss = torch.where(better, loss, self.best_loss)
        step = torch.where(better[:, None], -self._precondition(self.best_grad), self.shrink * self.last_step)
        # Without curvature yet, or where the quasi-Newton direction does not descend, take a plain gradient step.
        plain = (self.gamma == 0) | ((step * self.best_grad).sum(1) >= 0)
        gradient_step = -self.best_grad * (self.first_step / self.best_grad.norm(dim=1).clamp_min(1e-12))[:, None]
        step = torch.where((plain & better)[:, None], gradient_step, step)
        norm = step.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.last_step = step * (self.max_step / norm).clamp_max(1.0)
        return self.best_x + self.last_step

    def _remember(self, s: Float[Tensor, "B m"], y: Float[Tensor, "B m"], usable: Bool[Tensor, " B"]) -> None:
        """Push (s, y) into each image's history where the curvature sᵀy is positive."""
        curvature = (s * y).sum(1)
        usable = usable & (curvature > 1e-8 * s.norm(dim=1) * y.norm(dim=1)) & (curvature > 0)
        keep = usable[None, :, None]
        self.s = torch.where(keep, torch.cat([self.s[1:], s[None]]), self.s)
        self.y = torch.where(keep, torch.cat([self.y[1:], y[None]]), self.y)
        rho = 1 / torch.where(usable, curvature, 1)
        self.rho = torch.where(usable[None], torch.cat([self.rho[1:], rho[None]]), self.rho)
        scale = curvature / y.square().sum(1).clamp_min(1e-20)
        self.gamma = torch.where(usable, scale, self.gamma)

    def _precondition(self, grad: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
        """H·grad by the two-loop recursion (Nocedal & Wright, algorithm 7.4), newest pair last."""
        q, alphas = grad, []
        for k in reversed(range(self.memory)):
            alpha = self.rho[k] * (self.s[k] * q).sum(1)
            q = q - alpha[:, None] * self.y[k]
            alphas.append(alpha)
        q = q * self.gamma[:, None]
        for k, alpha in zip(range(self.memory), reversed(alphas), strict=True):
            beta = self.rho[k] * (self.y[k] * q).sum(1)
            q = q + (alpha - beta)[:, None] * self.s[k]
        return q
