"""A scheduler's single step as a few numbers, so that no scheduler needs a code branch here.

A deterministic one-step sampler is linear in its two inputs: with x_T = s·ε, the network gets k·x_T at timestep t, and its
output v becomes the latent `a·ε + b·v`. The values of s, k, t, a, b depend on the scheduler class, its configuration and the
prediction type. They are measured: the scheduler runs on unit inputs in float64, and is checked to be linear.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ortho_core.errors import UserError
from ortho_core.generators.recipe import scale_at_start, started
from ortho_core.text.plain_text import one_line

#: Values of noise and network output at which a step must be the linear map of its weights; the first is repeated, since a random
#: step differs from itself.
PROBES = ((3.0, -2.0), (-40.0, 25.0), (3.0, -2.0))
#: A smaller weight of the network's output, relative to that of the noise, is rounding.
LEAST_WEIGHT = 1e-9


@dataclass(frozen=True)
class OneStep:
    """The latent is `noise_weight·ε + output_weight·network(input_scale·ε, timestep)`."""

    timestep: float
    input_scale: float
    noise_weight: float
    output_weight: float

    @staticmethod
    def of(scheduler: Any, timestep: int | None = None) -> "OneStep":
        """Measure a diffusers scheduler's step at `timestep`, which the model was distilled for (None: the scheduler's choice).

        Raises UserError, with the scheduler's name and the reason in one line, for a scheduler that cannot take one step, and for
        one whose step is random, not linear (a clipped or thresholded sample), or leaves the network's output out.
        """
        name = type(scheduler).__name__

        def step(noise: float, output: float) -> float:
            fresh, t = _prepared(scheduler, timestep)
            x = torch.full((1, 1, 1, 1), noise, dtype=torch.float64) * scale_at_start(fresh)
            _scaled(fresh, x, t)
            v = torch.full((1, 1, 1, 1), output, dtype=torch.float64)
            return float(fresh.step(v, t, x, return_dict=False)[0])

        try:
            fresh, t = _prepared(scheduler, timestep)
            one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            scale = float(_scaled(fresh, one * scale_at_start(fresh), t))
            a, b = step(1.0, 0.0), step(0.0, 1.0)
            probed = [(noise, output, step(noise, output)) for noise, output in PROBES]
        except Exception as error:  # a scheduler of another kind of model may raise anything
            asked, why = "one step" if timestep is None else f"one step at timestep {timestep}", one_line(error)
            why = type(error).__name__ if why in ("", "None") else why
            raise UserError(f"{name} cannot take {asked}: {why}") from error
        for noise, output, made in probed:
            expected = a * noise + b * output
            if not abs(made - expected) <= 1e-4 * (abs(a * noise) + abs(b * output) + 1e-6):
                raise UserError(
                    f"one step of {name} is not a fixed linear map of noise and network output "
                    "(a stochastic or clipping scheduler); a one-step model needs a deterministic step"
                )
        if abs(b) <= LEAST_WEIGHT * max(1.0, abs(a)):
            raise UserError(
                f"one step of {name}, as it is configured, leaves out the network's output (its weight is {b:g}); a one-step "
                "model needs another scheduler or timestep"
            )
        return OneStep(float(t), scale, a, b)


def _prepared(scheduler: Any, timestep: int | None) -> tuple[Any, Any]:
    """A new scheduler of the same configuration, set up for one step, and the timestep."""
    fresh = started(type(scheduler).from_config(scheduler.config), timestep)
    return fresh, fresh.timesteps[0]


def _scaled(scheduler: Any, x: torch.Tensor, t: Any) -> torch.Tensor:
    """The network's input; flow schedulers leave it as it is."""
    if not hasattr(scheduler, "scale_model_input"):
        return x
    scaled: torch.Tensor = scheduler.scale_model_input(x, t)
    return scaled
