"""Ctrl-C and SIGTERM: a verb ends within seconds, with one line and the signal's exit code (130, 143).

The first signal raises an exception in the main thread. Further signals are ignored, so that they do not disturb the clean-up.
Python drops an exception that is raised in a finalizer or in a callback of a library; it is raised again then. If the main
thread still does not end, another thread ends the process.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: The most seconds from the signal to the end of the process.
GRACE_S = 12.0
#: Seconds after which an exception that was dropped is raised again.
AGAIN_S = 0.05


class Interrupted(KeyboardInterrupt):
    """The process received SIGINT or SIGTERM."""

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
    """The signal that the process received, and whether its exception was dropped."""

    def __init__(self, last_line: Callable[[Interrupted], None]) -> None:
        self.last_line = last_line
        self.told: Interrupted | None = None
        #: Whether the exception was dropped and the next signal is to raise it again.
        self.again = False
        self.over = threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.told is not None and not self.again:  # the process is ending already
            return
        if self.told is None:
            self.told, self.over = Interrupted(number), threading.Event()
            threading.Thread(target=self._insist, args=(self.told, self.over), daemon=True).start()
        self.again = False
        raise self.told

    def dropped(self) -> None:
        """Raise the exception again after AGAIN_S: Python has dropped it."""

        def signal_again() -> None:
            self.again = not self.over.is_set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        timer = threading.Timer(AGAIN_S, signal_again)
        timer.daemon = True
        timer.start()

    def _insist(self, interrupt: Interrupted, over: threading.Event) -> None:
        if not over.wait(GRACE_S):
            self.last_line(interrupt)
            os._exit(interrupt.code)


_watch: _Watch | None = None


@contextmanager
def told_to_end(last_line: Callable[[Interrupted], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Interrupted` in the main thread. In another thread this does nothing.

    `last_line` prints the last line if another thread must end the process.
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
    """The `Interrupted` with the right signal: a wait in Ray raises its own KeyboardInterrupt, also for SIGTERM."""
    if isinstance(error, Interrupted):
        return error
    received = None if _watch is None else _watch.told
    return Interrupted(signal.SIGINT) if received is None else received


def taken() -> None:
    """Call this after catching `Interrupted` to continue: the next signal raises a new one."""
    if _watch is not None:
        _watch.over.set()
        _watch.told = None
