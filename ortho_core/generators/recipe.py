"""What decides the one step of a model: read from its folder, without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ortho_core.errors import UserError


@dataclass(frozen=True)
class OneStepRecipe:
    """What decides a model's step: its scheduler, and where the weights were distilled to start if the scheduler does not say."""

    scheduler: str
    config: Mapping[str, object]
    timestep: int | None = None

    def noise_scale(self) -> float:
        """s of x_T = s·ε, which the scheduler starts from. Raises UserError for a scheduler that does not say."""
        # Imported late: it takes seconds, and a caller that states the scale never needs it.
        import diffusers

        try:
            kind = getattr(diffusers, self.scheduler)
            if not issubclass(kind, diffusers.SchedulerMixin):
                raise ValueError(f"{self.scheduler} is no scheduler")
            scheduler = started(kind.from_config(dict(self.config)), self.timestep)
            scale = float(scheduler.init_noise_sigma)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"does not tell the scale of the noise: {error!r}; --noise-scale states it") from error
        # Machines differ in the last bit, and the number goes into plans.
        return round(scale, 6)


def started(scheduler: Any, timestep: int | None) -> Any:
    """The scheduler, set to take one step."""
    if timestep is None:
        scheduler.set_timesteps(1)
    else:
        scheduler.set_timesteps(timesteps=[timestep])
    return scheduler
