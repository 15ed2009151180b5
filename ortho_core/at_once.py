"""How many rows are computed at once: as many as are asked for, halved as often as memory runs out, down to one."""

from collections.abc import Callable
from typing import TypeVar

import torch

from ortho_core.errors import ran_out_of_memory

T = TypeVar("T")


class AtOnce:
    """Computes rows in parts. What memory there was for once is what is asked for from then on."""

    def __init__(self, size: int, on_event: Callable[[str], None] | None = None) -> None:
        """`on_event` hears of a size that was halved."""
        self.size, self.on_event = size, on_event

    def __call__(self, rows: int, compute: Callable[[slice], T]) -> list[T]:
        """What `compute` makes of each part of so many rows, in order. Raises what it raises for a single row."""
        made: list[T] = []
        start = 0
        while start < rows:
            size = min(self.size, rows - start)
            try:
                made.append(compute(slice(start, start + size)))
                start += size
                continue
            except Exception as error:
                if size == 1 or not ran_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Outside the handler, whose traceback would keep the tensors of the failed part alive.
            self.size = size // 2
            free_cached()
            if self.on_event is not None:
                self.on_event(f"out of memory, going on with {self.size} at once ({reason})")
        return made


def free_cached() -> None:
    """Give back what the GPU's allocator keeps for later: in pieces of other sizes it is of no use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
