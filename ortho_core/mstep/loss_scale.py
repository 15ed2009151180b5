"""The factor on a loss whose gradient passes through float16, so that small gradients are not flushed to zero.

As in mixed-precision training of Micikevicius et al. (2018), but an update whose gradient overflows is made again with a
smaller factor instead of being left out.
"""

#: A factor to begin with, and the one below which it is not the factor that makes a gradient overflow.
FIRST_SCALE, LEAST_SCALE = 2.0**16, 1.0
#: Finite updates after which the factor is doubled.
PATIENCE = 1000


class LossScale:
    """A power of two, which rounds nothing; 1 where the gradient does not pass through float16."""

    def __init__(self, in_float16: bool) -> None:
        self.in_float16 = in_float16
        self.value = FIRST_SCALE if in_float16 else 1.0
        self.finite = 0

    def retries(self, finite: bool) -> bool:
        """After each gradient: is it to be made again? Adapts the factor."""
        if not self.in_float16:
            return False
        if not finite:
            self.finite = 0
            again = self.value > LEAST_SCALE
            # What overflows at every factor is no fault of the factor: the next update has the first one again.
            self.value = self.value / 2 if again else FIRST_SCALE
            return again
        self.finite += 1
        if self.finite % PATIENCE == 0:
            self.value *= 2
        return False

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "finite": self.finite}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse. A run that goes on in another precision begins with a factor of its own."""
        if self.in_float16 and state["value"] > 1:
            self.value, self.finite = state["value"], int(state["finite"])
