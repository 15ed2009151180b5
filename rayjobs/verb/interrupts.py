"""Ctrl-C and SIGTERM: a verb ends within seconds, says so in a line, and its exit code is the signal's (130, 143).

The first signal raises an exception in the main thread, wherever it is; what is being cleaned up after that is not disturbed by
another. Python drops an exception where nothing could catch it (in a finalizer, in a callback of a library): it is raised again
then. Where the main thread does not come back all the same, the process ends by itself.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Seconds from the signal to the end of the process at most.
GRACE_S = 12.0
#: Seconds after which an exception that was dropped is raised again.
AGAIN_S = 0.05


class Interrupted(KeyboardInterrupt):
    """The process was told to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code."""
        return 128 + self.number

    def __str__(self) -> str:
        what = "interrupted" if self.number == signal.SIGINT else f"ended by {signal.Signals(self.number).name}"
        return f"{what}; the same command again goes on from here"


class _Watch:
    """What the process was told, and whether that has come through."""

    def __init__(self, last_line: Callable[[Interrupted], None]) -> None:
        self.last_line = last_line
        self.told: Interrupted | None = None
        #: The exception was dropped, and is to be raised by the next signal.
        self.again = False
        self.over = threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.told is not None and not self.again:  # it ends already
            return
        if self.told is None:
            self.told, self.over = Interrupted(number), threading.Event()
            threading.Thread(target=self._insist, args=(self.told, self.over), daemon=True).start()
        self.again = False
        raise self.told

    def dropped(self) -> None:
        """The exception ended nothing."""

        def tell() -> None:
            self.again = not self.over.is_set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        timer = threading.Timer(AGAIN_S, tell)
        timer.daemon = True
        timer.start()

    def _insist(self, told: Interrupted, over: threading.Event) -> None:
        if not over.wait(GRACE_S):
            self.last_line(told)
            os._exit(told.code)


_watch: _Watch | None = None


@contextmanager
def told_to_end(last_line: Callable[[Interrupted], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Interrupted` in the main thread; elsewhere than there it does nothing.

    `last_line` says it where the process must be ended from beside.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch, before_hook = _Watch(last_line), sys.unraisablehook

    def unraisable(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Interrupted):
            watch.dropped()
        else:
            before_hook(dropped)

    before = {number: signal.signal(number, watch.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.unraisablehook, outer, _watch = unraisable, _watch, watch
    try:
        yield
    finally:
        watch.over.set()
        sys.unraisablehook, _watch = before_hook, outer
        for number, handler in before.items():
            signal.signal(number, handler)


def as_told(error: KeyboardInterrupt) -> Interrupted:
    """What told the process to end: Ray raises a KeyboardInterrupt of its own, whatever the signal was that its wait met with."""
    if isinstance(error, Interrupted):
        return error
    told = None if _watch is None else _watch.told
    return Interrupted(signal.SIGINT) if told is None else told


def taken() -> None:
    """Whoever caught `Interrupted` goes on: the next signal is a new one."""
    if _watch is not None:
        _watch.over.set()
        _watch.told = None
