"""The settings of a model's one step, read from its folder without PyTorch."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ortho_core.errors import UserError


@dataclass(frozen=True)
class OneStepRecipe:
    """The settings of a model's step: its scheduler, the timestep that it was distilled for (None: the scheduler's first), the
    sizes of images that it was trained at, as `WIDTHxHEIGHT` (none: its own size), and the guidance scale, where it is an input
    of the network (None: the usual one of its kind)."""

    scheduler: str
    config: Mapping[str, object]
    timestep: int | None = None
    buckets: tuple[str, ...] = ()
    guidance: float | None = None

    def noise_scale(self) -> float:
        """s of x_T = s·ε, the scheduler's start. Raises UserError if the scheduler does not define it."""
        # Imported here: it takes seconds, and callers with --noise-scale do not need it.
        import diffusers

        try:
            kind = getattr(diffusers, self.scheduler)
            if not issubclass(kind, diffusers.SchedulerMixin):
                raise ValueError(f"{self.scheduler} is not a scheduler")
            scale = scale_at_start(started(kind.from_config(dict(self.config)), self.timestep))
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise UserError(f"does not define the scale of the noise: {error!r}; give it with --noise-scale") from error
        # Rounded, because machines differ in the last bit and plans contain the number.
        return round(scale, 6)


def started(scheduler: Any, timestep: int | None) -> Any:
    """The scheduler, set up for one step."""
    if timestep is None:
        named = inspect.signature(scheduler.set_timesteps).parameters
        # SCM, of SANA-Sprint, divides its steps at a timestep in between unless it is told that there is none.
        options: dict[str, Any] = {"intermediate_timesteps": None} if "intermediate_timesteps" in named else {}
        # A shift that depends on the image's size leaves the first noise level, 1, as it is; any value will do.
        options |= {"mu": 1.0} if "mu" in named and scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(1, **options)
    else:
        scheduler.set_timesteps(timesteps=[timestep])
    return scheduler


def scale_at_start(scheduler: Any) -> float:
    """s of x_T = s·ε; flow schedulers start at the noise itself and do not state it."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))
