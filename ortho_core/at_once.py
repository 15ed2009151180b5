"""How many rows are computed at once: as many as requested, halved each time memory runs out, down to one."""

from collections.abc import Callable
from typing import TypeVar

import torch

from ortho_core.errors import ran_out_of_memory

T = TypeVar("T")


class AtOnce:
    """Computes rows in parts. A part size that was halved because memory ran out stays halved for later calls."""

    def __init__(self, size: int, on_event: Callable[[str], None] | None = None) -> None:
        """`on_event` is called with a message each time the size is halved."""
        self.size, self.on_event = size, on_event

    def __call__(self, rows: int, compute: Callable[[slice], T]) -> list[T]:
        """The results of `compute` for each part of `rows` rows, in order. Raises an error that `compute` raises for one row."""
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
                self.on_event(f"out of memory, continuing with {self.size} at once ({reason})")
        return made


def free_cached() -> None:
    """Empty the cache of the GPU's allocator: its blocks have the wrong sizes for smaller batches."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
