"""The scale of a loss whose gradient passes through float16, so that small gradients do not become zero.

As in the mixed-precision training of Micikevicius et al. (2018), but an update whose gradient overflows is repeated with a
smaller scale instead of being skipped.
"""

#: The first scale, and the smallest one: a gradient that overflows even then does not overflow because of the scale.
FIRST_SCALE, LEAST_SCALE = 2.0**16, 1.0
#: Finite updates after which the scale is doubled.
PATIENCE = 1000


class LossScale:
    """A power of two, which causes no rounding; 1 if the gradient does not pass through float16."""

    def __init__(self, in_float16: bool) -> None:
        self.in_float16 = in_float16
        self.value = FIRST_SCALE if in_float16 else 1.0
        self.finite = 0

    def retries(self, finite: bool) -> bool:
        """Adapt the scale after a gradient. Returns whether the gradient must be computed again."""
        if not self.in_float16:
            return False
        if not finite:
            self.finite = 0
            again = self.value > LEAST_SCALE
            # A gradient that overflows at every scale is not the scale's fault: the next update starts with the first scale.
            self.value = self.value / 2 if again else FIRST_SCALE
            return again
        self.finite += 1
        if self.finite % PATIENCE == 0:
            self.value *= 2
        return False

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "finite": self.finite}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`. A run that resumes in another precision starts with the default scale."""
        if self.in_float16 and state["value"] > 1:
            self.value, self.finite = state["value"], int(state["finite"])
