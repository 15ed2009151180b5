"""What a row of a pair set may cost, and room for the pixels that are decoded at once."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Limits of what a row may cost, where nothing else is said; of pixels Pillow opens no more than the last.
MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, OPENED_PIXELS = 256 << 20, 80_000_000, 178_956_970
#: A model reads some hundred characters of a prompt; counting the tokens of 20 million takes a minute and gigabytes.
MAX_PROMPT_LENGTH = 20_000
#: Pixels that all threads of a process decode at once; each takes up to 16 bytes on its way. A larger image is alone.
PIXELS_AT_ONCE = 80_000_000


class Room:
    """Room for so many pixels at once, over all threads; who asks first is let in first, and the sum is never exceeded but by
    one image alone."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.used = pixels, 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that waits for room for so many pixels, held until the block ends or it is called again."""
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
