"""Optimisers of the noise parameters. Each image is optimised separately; nothing is averaged over the batch.

Axes: B images (slots), m parameters, M stored L-BFGS pairs. From the loss and gradient at the last point, an optimiser
computes the next point to evaluate. No value leaves the device. A slot's state is reset when a new image enters it.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.linalg import vector_norm

#: γ divided by sᵀy/yᵀ·metric·y of the newest pair, which is the shorter of the two step lengths of Barzilai & Borwein (1988).
#: Steps twice as long need no more evaluations, and often fewer, on every problem of `benchmarks.estep_efficiency`.
STRETCH = 2.0


@runtime_checkable
class Optimizer(Protocol):
    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        """The next point (B, m) to evaluate, given loss and gradient at `x`, the point proposed last."""
        ...

    def reset(self, slots: Int[Tensor, " k"]) -> None:
        """Reset the state of these slots: their next point is the first of a new image."""
        ...


class AdamW:
    """The reference optimiser: AdamW on a full matrix `raw` with A = raw - rawᵀ, betas (0.9, 0.999), no weight decay.

    The entries raw_ij and raw_ji get opposite gradients, hence opposite updates (Loshchilov & Hutter 2019, eq. for m, v),
    so the entry A_ij above the diagonal moves by exactly twice one Adam update. This class computes that on A directly.
    """

    def __init__(self, like: Float[Tensor, "B m"], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.lr, self.betas, self.eps = lr, betas, 1e-8
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        # Images enter at different times, so each has its own step count. It is float64, as the powers in Python are. Apple's
        # GPUs have no float64: there the relative error of the first steps is up to 3e-5.
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
    """The metric of an optimiser without a curvature model."""
    return vectors


class LBFGS:
    """Limited-memory BFGS (Nocedal 1980) with one history and one step size per image, and no line search.

    A step that lowers the image's loss is kept. Any other step is undone: the next trial starts again from the best point,
    with at most half of the failed step's length. Its direction uses the curvature pair of the failed step, so no evaluation
    is wasted. The recursion starts from γ·metric. `metric` is the inverse of an initial model of the Hessian, up to a factor
    (`curvature.CurvatureModel`); γ comes from the newest pair (`STRETCH`). The first step has norm `first_step`; no step is
    longer than `max_step`.
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
        #: The stored pairs of each image; a new pair replaces the oldest. Zeros where there is no pair yet.
        self.s, self.y = like.new_zeros(B, memory, m), like.new_zeros(B, memory, m)
        #: Number of pairs that the image had before this pair was stored, and number of pairs stored so far.
        self.born = torch.zeros(B, memory, dtype=torch.long, device=like.device)
        self.count = torch.zeros(B, dtype=torch.long, device=like.device)
        #: sᵢᵀyⱼ, used only where pair i is not newer than pair j, and yᵢᵀ·metric·yⱼ.
        self.sy, self.ymy = like.new_zeros(B, memory, memory), like.new_zeros(B, memory, memory)
        #: γ, 0 before the first pair.
        self.gamma = like.new_zeros(B)

    def reset(self, slots: Int[Tensor, " k"]) -> None:
        self.best_loss[slots] = float("inf")
        for state in (self.best_x, self.best_grad, self.last_step, self.gamma):
            state[slots] = 0
        for history in (self.s, self.y, self.born, self.count, self.sy, self.ymy):
            history[slots] = 0

    def propose(self, x: Float[Tensor, "B m"], loss: Float[Tensor, " B"], grad: Float[Tensor, "B m"]) -> Tensor:
        finite = loss.isfinite() & grad.isfinite().all(1)
        grad = torch.where(finite[:, None], grad, 0)
        better = finite & (loss < self.best_loss)
        seen = self.best_loss.isfinite()
        self._remember(x - self.best_x, grad - self.best_grad, finite & seen)
        self.best_x = torch.where(better[:, None], x, self.best_x)
        self.best_grad = torch.where(better[:, None], grad, self.best_grad)
        self.best_loss = torch.where(better, loss, self.best_loss)
        along = self.metric(self.best_grad)
        step = -self._precondition(self.best_grad, along)
        # Before the first pair, and where the quasi-Newton direction does not descend, follow the metric's gradient.
        plain = (self.gamma == 0) | ((step * self.best_grad).sum(1) >= 0)
        descent = -along * (self.first_step / vector_norm(along, dim=1).clamp_min(1e-20))[:, None]
        step = torch.where(plain[:, None], descent, step)
        longest = torch.where(better, self.max_step, 0.5 * vector_norm(self.last_step, dim=1))
        self.last_step = step * (longest / vector_norm(step, dim=1).clamp_min(1e-12)).clamp_max(1.0)[:, None]
        return self.best_x + self.last_step

    def _remember(self, s: Float[Tensor, "B m"], y: Float[Tensor, "B m"], usable: Bool[Tensor, " B"]) -> None:
        """Push (s, y) into each image's history where the curvature sᵀy is positive."""
        curvature = (s * y).sum(1)
        usable = usable & (curvature > 1e-8 * vector_norm(s, dim=1) * vector_norm(y, dim=1)) & (curvature > 0)
        rows, place = torch.arange(len(s), device=s.device), self.count % self.memory
        for history, new in ((self.s, s), (self.y, y)):
            history[rows, place] = torch.where(usable[:, None], new, history[rows, place])
        along = self.metric(y)
        sy, ymy = (torch.bmm(history, new[:, :, None]).squeeze(2) for history, new in ((self.s, y), (self.y, along)))
        self.sy[rows, :, place] = torch.where(usable[:, None], sy, self.sy[rows, :, place])
        for i, j in ((slice(None), place), (place, slice(None))):
            self.ymy[rows, i, j] = torch.where(usable[:, None], ymy, self.ymy[rows, i, j])
        self.born[rows, place] = torch.where(usable, self.count, self.born[rows, place])
        self.count = self.count + usable
        self.gamma = torch.where(usable, STRETCH * curvature / (y * along).sum(1).clamp_min(1e-20), self.gamma)

    def _precondition(self, grad: Float[Tensor, "B m"], along: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
        """H·grad with `along` = metric·grad, in the compact form (Byrd, Nocedal & Schnabel 1994, theorem 2.2).

        The result is that of the two-loop recursion, with two products over all pairs at once instead of four for each pair:
        H g = γ·metric·(g + Y b) + S a with R b = -Sᵀg, Rᵀa = -(D + γ·Yᵀ·metric·Y) b - γ·Yᵀ·metric·g, R the upper triangle
        of SᵀY in the order of the pairs and D its diagonal.
        """
        gamma = self.gamma[:, None, None]
        diagonal = torch.diagonal(self.sy, dim1=1, dim2=2)
        R = torch.where(self.born[:, :, None] <= self.born[:, None, :], self.sy, 0)
        # Missing pairs have zeros everywhere. The 1 on the diagonal makes R invertible and changes nothing.
        R = R + torch.diag_embed((diagonal == 0).to(R))
        b = -torch.linalg.solve_ex(R, torch.bmm(self.s, grad[:, :, None]), check_errors=False).result
        right = torch.diag_embed(diagonal) @ b + gamma * (self.ymy @ b + torch.bmm(self.y, along[:, :, None]))
        a = -torch.linalg.solve_ex(R.mT, right, check_errors=False).result
        inner = grad + torch.bmm(b.mT, self.y).squeeze(1)
        return self.metric(inner) * self.gamma[:, None] + torch.bmm(a.mT, self.s).squeeze(1)
