"""Turns: threads of a worker that wait for each other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A shard that was being searched when a worker died is searched alone. If it crashes the worker again, it takes no other
    shard with it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def take(self, alone: bool) -> Iterator[None]:
        """Wait for a turn; with `alone`, until no other caller is inside. No other enters before an `alone` block ends."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not (alone and self._inside))
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()
