"""Limits on the size of a pair set's rows, and on the pixels that are decoded at once."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Default limits of an image, in bytes and in pixels; and the most pixels that Pillow opens.
MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, OPENED_PIXELS = 256 << 20, 80_000_000, 178_956_970
#: Default limit of a prompt, in characters. A model reads only a few hundred; tokenising 20 million takes a minute and gigabytes.
MAX_PROMPT_LENGTH = 20_000
#: Pixels that all threads of a process decode at once; each needs up to 16 bytes meanwhile. A larger image is decoded alone.
PIXELS_AT_ONCE = 80_000_000


class Room:
    """A limit on the pixels that all threads decode at once, first come, first served. Only a single image, decoded alone, may
    exceed it."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.used = pixels, 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that waits until there is room for a number of pixels. The room is released by the next call, and at
        the end of the block."""
        mine = 0

        def hold(pixels: int) -> None:
            nonlocal mine
            ticket = object()
            with self._changed:
                self.used, mine = self.used - mine, 0
                self._waiting.append(ticket)
                try:
                    self._changed.wait_for(lambda: self._waiting[0] is ticket and self._has_room(pixels))
                    self.used, mine = self.used + pixels, pixels
                finally:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()

        try:
            yield hold
        finally:
            with self._changed:
                self.used -= mine
                self._changed.notify_all()

    def _has_room(self, pixels: int) -> bool:
        return not self.used or self.used + pixels <= self.pixels
