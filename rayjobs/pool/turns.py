"""Turns: callers that wait for each other in order."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Shards that were under way when a worker died go alone, so that the one to blame takes no other along."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def take(self, alone: bool) -> Iterator[None]:
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
