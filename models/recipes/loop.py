"""The training loop of the small models in this repository."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

#: Steps between log lines, and between saved folders.
LOG_EVERY, SAVE_EVERY = 100, 500


@dataclass(frozen=True)
class Average:
    """An exponential average of the weights; `save` is called while the network has the averaged weights."""

    decay: float
    save: Callable[[], object]


def train(
    parameters: Sequence[nn.Parameter],
    optimizers: Sequence[Optimizer],
    schedules: Sequence[LRScheduler],
    steps: int,
    loss_at: Callable[[int], tuple[Tensor, str]],
    *,
    name: str,
    clip: float | None = None,
    average: Average | None = None,
) -> None:
    """Make `steps` steps. `loss_at` returns the loss of a step and a note for its log line.

    `clip` is the norm that the gradient is clipped to (None: not at all). Prints the running mean of the loss.
    """
    ema = EMAModel(parameters, decay=average.decay) if average is not None else None
    print(f"{name}: {sum(p.numel() for p in parameters):,} parameters", flush=True)
    began, running = time.monotonic(), 0.0
    for step in range(steps):
        loss, note = loss_at(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        for part in (*optimizers, *schedules):
            part.step()
        running += (loss.item() - running) / min(step + 1, LOG_EVERY)
        last = step == steps - 1
        if step % LOG_EVERY == 0 or last:
            seconds = time.monotonic() - began
            print(f"{name}: step {step + 1} of {steps}, loss {running:.4f}{note}, {seconds:.0f} s", flush=True)
        if ema is None or average is None:
            continue
        ema.step(parameters)
        if step % SAVE_EVERY == SAVE_EVERY - 1 or last:
            ema.store(parameters)
            ema.copy_to(parameters)
            average.save()
            ema.restore(parameters)
