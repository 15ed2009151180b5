"""A scheduler's single step as a few numbers, so that no scheduler needs a code branch here.

A deterministic one-step sampler is linear in its two inputs: with x_T = s·ε, the network gets k·x_T at timestep t, and its
output v becomes the latent `a·ε + b·v`. The values of s, k, t, a, b depend on the scheduler class, its configuration and the
prediction type. They are measured: the scheduler runs on unit inputs in float64, and is checked to be linear.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ortho_core.errors import UserError
from ortho_core.generators.recipe import started


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

        Raises UserError for a scheduler whose one step is random or not linear (a clipped or thresholded sample).
        """
        name = type(scheduler).__name__

        def prepare() -> tuple[Any, torch.Tensor]:
            fresh = started(type(scheduler).from_config(scheduler.config), timestep)
            return fresh, fresh.timesteps[0]

        def step(noise: float, output: float) -> float:
            fresh, t = prepare()
            x = torch.full((1, 1, 1, 1), noise, dtype=torch.float64) * float(fresh.init_noise_sigma)
            fresh.scale_model_input(x, t)
            v = torch.full((1, 1, 1, 1), output, dtype=torch.float64)
            return float(fresh.step(v, t, x, return_dict=False)[0])

        try:
            fresh, t = prepare()
        except (ValueError, TypeError) as error:
            raise UserError(f"{name} cannot start at timestep {timestep}: {error}") from error
        scale = fresh.scale_model_input(torch.ones(1, 1, 1, 1, dtype=torch.float64) * float(fresh.init_noise_sigma), t)
        a, b = step(1.0, 0.0), step(0.0, 1.0)
        for noise, output in ((3.0, -2.0), (-40.0, 25.0), (3.0, -2.0)):
            expected = a * noise + b * output
            if abs(step(noise, output) - expected) > 1e-4 * (abs(a * noise) + abs(b * output) + 1e-6):
                raise UserError(
                    f"one step of {name} is not a fixed linear map of noise and network output "
                    "(a stochastic or clipping scheduler); a one-step model needs a deterministic step"
                )
        return OneStep(float(t), float(scale), a, b)
