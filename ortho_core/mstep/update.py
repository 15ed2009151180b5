"""One update of the M-step, and the state for a resumed run. Workers communicate only through PyTorch.

Axes: B rows of this worker's share of an update.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ortho_core.errors import UserError
from ortho_core.generators.base import check_generator
from ortho_core.generators.precision import fast_matmul
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.generators.quantized import is_quantized
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.loss import TERMS, SftBatch, sft_loss
from ortho_core.mstep.loss_scale import LossScale
from ortho_core.mstep.teacher import Teacher, teacher_of


class LossTerms(NamedTuple):
    """The terms of the M-step's loss, each the mean over the rows of an update, in the order of `TERMS`."""

    #: The weighted sum of the other terms. It is minimised.
    loss: float
    #: mean((f_θ(ε̂,c) - E(x))²).
    latent: float
    #: mean|D f_θ(ε̂,c) - x|; 0 where its weight is 0.
    pixel: float
    #: mean((f_θ(ε',c) - f_0(ε',c))²); 0 where its weight is 0.
    preserve_latent: float
    #: mean|D f_θ(ε',c) - D f_0(ε',c)|; 0 where its weight is 0.
    preserve_pixel: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self._asdict().items())


@dataclass(frozen=True)
class Outcome:
    """The result of one update."""

    #: The terms of the loss, as means over this worker's rows, in host memory: reading them does not wait for the device.
    terms: LossTerms
    #: The reconstruction terms of each of this worker's rows, unweighted.
    rows: Float[Tensor, " B"]
    #: Norm of the gradient over all workers, before clipping.
    grad_norm: float
    #: False if the gradient was not finite: then no weight changed.
    applied: bool


def make_optimizer(config: MStepConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the configuration, over the trained parameters."""
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def make_trainable(network: nn.Module) -> None:
    """Make all weights trainable if none is. Raises UserError, with an alternative, for weights that cannot be trained."""
    if any(p.requires_grad for p in network.parameters()):
        return
    adapter = "train an adapter: add_lora(generator.trainable, Lora(rank=16, alpha=16), seed=0)"
    if is_quantized(network):
        raise UserError(f"packed weights (quantize) cannot be trained: {adapter}")
    halved = {p.dtype for p in network.parameters()} - {torch.float32, torch.float64}
    if halved:
        dtype = str(halved.pop()).removeprefix("torch.")
        raise UserError(
            f"weights in {dtype} are not precise enough to train: load_generator(..., dtype='float32'), or {adapter}"
        )
    network.requires_grad_(True)


def half_dtype(device: torch.device, config: MStepConfig, made_for: str | None = None) -> torch.dtype | None:
    """The dtype of autocast on this device; None for float32. `made_for` is the half precision that the model was made for
    (None: float16)."""
    if config.mixed_precision == "auto":
        half: torch.dtype = getattr(torch, made_for or "float16")
        return None if device.type == "cpu" else half
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]


def half_of(generator: OneStepGenerator, config: MStepConfig) -> torch.dtype | None:
    """The dtype of autocast for a generator's network; None for float32."""
    return half_dtype(generator.device, config, getattr(generator, "half", None))


def autocast(generator: OneStepGenerator, config: MStepConfig) -> torch.autocast:
    """The autocast context of the network, in training and in validation."""
    half = half_of(generator, config)
    return torch.autocast(generator.device.type, half, enabled=half is not None)


class MStep:
    """The M-step: `update` trains the generator's network on one batch. It changes the generator in place.

    All parameters that require gradients are trained: in a network with an adapter only the adapter's. If no parameter requires
    gradients, as after `load_generator`, all are trained.
    """

    def __init__(
        self,
        generator: OneStepGenerator,
        config: MStepConfig | None = None,
        updates: int | None = None,
        *,
        teacher: Teacher | Literal["start"] | None = "start",
        wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        """`updates` is the total number of updates, for a learning rate that decays (`lr_schedule` linear or cosine).

        `teacher` is f_0 of the preserve terms. By default it is the current network: a copy of it, or no copy of the network
        if it has an adapter. None: there are no preserve terms. `wrap` wraps the network for the updates, for example in DDP.

        Raises UserError for weights that cannot be trained (packed or in half precision), and for a learning rate that decays
        over an unknown number of updates.
        """
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        check_generator(generator)
        config = config or MStepConfig()
        if updates is None and config.lr_schedule != "constant":
            raise UserError(f"lr_schedule {config.lr_schedule} decays over the updates: MStep(..., updates=NUMBER)")
        make_trainable(generator.trainable)
        if teacher == "start":
            teacher = teacher_of(generator.trainable) if config.preserves else None
        self.generator, self.teacher, self.config = generator, teacher, config
        self.network = generator.trainable.train()
        self.wrapped = wrap(self.network)
        # After wrapping: sharding replaces the parameters.
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config, self.parameters)
        self.schedule = get_scheduler(
            # diffusers' "constant" ignores the warm-up
            "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
            self.optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=updates,
        )
        # PyTorch's foreach copy does not support sharded parameters.
        foreach = not hasattr(self.wrapped, "set_requires_gradient_sync")
        self.ema: Any = EMAModel(self.parameters, decay=config.ema_decay, foreach=foreach) if config.ema else None
        self.loss_scale = LossScale(half_of(generator, config) == torch.float16)

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return float(self.schedule.get_last_lr()[0])

    def update(self, batch: SftBatch | Sequence[SftBatch]) -> Outcome:
        """Forward, backward and optimiser step on this worker's share. A gradient that is not finite is not applied.

        A share with images of several sizes is a sequence of batches, one or more for each size; their losses are added, so their
        rows have weights.

        Raises UserError if the loss has preserve terms and the batch has no noise for them.

        Waits for the device once, between backward pass and optimiser step, for the terms and the norm of the gradient. In
        float16, a gradient that is not finite is first computed again with a smaller loss scale; each repetition waits once.
        """
        while True:
            means, rows = self._accumulate(batch)
            terms, grad_norm = self._clip(means)
            if not self.loss_scale.retries(math.isfinite(grad_norm)):
                break
            self.optimizer.zero_grad(set_to_none=True)
        applied = math.isfinite(grad_norm)
        if applied:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.step(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return Outcome(LossTerms(*terms.tolist()), rows, grad_norm, applied)

    def _accumulate(self, batch: SftBatch | Sequence[SftBatch]) -> tuple[Float[Tensor, " terms"], Float[Tensor, " B"]]:
        """Forward and backward on the micro-batches; the terms of the loss and each row's error."""
        config, generator = self.config, self.generator
        if isinstance(batch, SftBatch):
            micro_batches: Sequence[SftBatch] = batch.split(config.gradient_accumulation_steps)
            divisor = len(micro_batches)
        else:  # the rows have weights
            micro_batches, divisor = batch, 1
        sums: Tensor | None = None
        rows = []
        usual, generator.trainable = generator.trainable, self.wrapped
        try:
            for k, part in enumerate(micro_batches):
                with self._synchronised(k + 1 == len(micro_batches)), fast_matmul(generator.device):
                    with self.autocast():
                        terms = sft_loss(generator, self.teacher, part, config)
                    torch.autograd.backward(self.loss_scale.value * (terms["loss"] / divisor))
                values = torch.stack([terms[name].detach() for name in TERMS])
                sums = values if sums is None else sums + values
                rows.append(terms["rows"])
        finally:
            generator.trainable = usual
        assert sums is not None
        return sums / divisor, torch.cat(rows)

    def autocast(self) -> torch.autocast:
        return autocast(self.generator, self.config)

    def _clip(self, terms: Float[Tensor, " terms"]) -> tuple[Float[Tensor, " terms"], float]:
        """Clip the gradient; returns the terms in host memory and the norm before clipping, fetched in one copy.

        The gradient is only rescaled if its norm is too large: otherwise the pass over it is saved.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.loss_scale.value != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.loss_scale.value)
        norm: Any = nn.utils.get_total_norm(gradients)
        # For sharded parameters, the norm is a sharded tensor.
        length = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        fetched = torch.cat([terms, length.reshape(1).to(terms.device)]).cpu()
        grad_norm = float(fetched[-1])
        if grad_norm > self.config.max_grad_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
        return fetched[:-1].to(terms.dtype), grad_norm

    def _synchronised(self, now: bool) -> AbstractContextManager[None]:
        """A context that synchronises gradients between the workers only if `now`: for the last micro-batch."""
        module: Any = self.wrapped
        if hasattr(module, "set_requires_gradient_sync"):  # FSDP2
            module.set_requires_gradient_sync(now)
        elif hasattr(module, "no_sync") and not now:  # DDP
            return module.no_sync()
        return nullcontext()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the network has the averaged weights."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def state_dict(self) -> dict[str, object]:
        """The state for a resumed run, on the CPU, not sharded even if the parameters are; only rank 0 gets it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state: dict[str, object] = {
            "network": get_model_state_dict(self.network, options=options),
            "optimizer": get_optimizer_state_dict(self.network, self.optimizer, options=options),
            "schedule": self.schedule.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
        }
        if self.ema is not None:
            with self.averaged():
                averages: dict[str, Any] = get_model_state_dict(self.network, options=options)
                # Cloned: on a CPU these are the network's own tensors, whose values are restored on leaving.
                state["ema"] = {name: value.clone() for name, value in averages.items()}
            state["ema_steps"] = self.ema.optimization_step
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; every worker passes the complete state."""
        options = StateDictOptions(full_state_dict=True, strict=False)
        if self.ema is not None:
            set_model_state_dict(self.network, state["ema"], options=options)
            self.ema.shadow_params = [p.detach().clone() for p in self.parameters]
            self.ema.optimization_step = state["ema_steps"]
        set_model_state_dict(self.network, state["network"], options=options)
        set_optimizer_state_dict(self.network, self.optimizer, state["optimizer"], options=options)
        self.schedule.load_state_dict(state["schedule"])
        self.loss_scale.load_state_dict(state["loss_scale"])
