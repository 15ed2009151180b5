"""The output of a job while it runs: a progress bar on a terminal, a line every ten seconds in a log."""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, TextIO

from ortho_core import __version__
from ortho_core.text.plain_text import message, printable, redacted_all

#: Seconds between two lines of a log, and between two updates of a bar.
LINE_EVERY_S, BAR_EVERY_S = 10.0, 0.2


#: The size of a terminal that does not report one.
NO_SIZE = {"ncols": 80, "nrows": 24}
#: Bars on the terminal. They are cleared before a line is printed and drawn again below it.
OPEN_BARS: list[Any] = []


class Progress:
    """Counts up to `total` units: a bar on a terminal, else a line every ten seconds, with rate, time left and a note.

    The rate is measured from the first finished units on, so that it does not include the start-up.
    """

    def __init__(
        self, name: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None, starting: str = ""
    ) -> None:
        """`done` units are finished already. `starting` is shown until the first unit is finished."""
        self.name, self.total, self.unit, self.done = message(name), total, unit, done
        self.stream = stream or sys.stderr
        #: When the first units were finished, and how many were done then.
        self.first: tuple[float, int] | None = None
        self.shown = time.monotonic()
        self.note = starting
        self.fresh = done > 0
        self.bar: Any = None
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total,
                initial=done,
                desc=name,
                file=self.stream,
                **({"dynamic_ncols": True} if os.get_terminal_size(self.stream.fileno()).columns else NO_SIZE),
                bar_format="{desc} {percentage:3.0f}%|{bar}| {unit}",
                unit=self._state(self.shown),
            )
            OPEN_BARS.append(self.bar)
        elif starting:
            say(f"{name}: {starting}")

    def advance(self, units: int, note: str = "") -> None:
        now = time.monotonic()
        self.done += units
        self.note = note
        self.fresh = True
        if self.first is None:
            self.first = (now, self.done)
        if now - self.shown >= (LINE_EVERY_S if self.bar is None else BAR_EVERY_S):
            self._show(now)

    def close(self) -> None:
        """Show the final state."""
        if self.fresh:
            self._show(time.monotonic())
        if self.bar is not None:
            OPEN_BARS.remove(self.bar)
            self.bar.close()

    def _show(self, now: float) -> None:
        self.shown, self.fresh = now, False
        if self.bar is None:
            say(f"{self.name}: {self._state(now)}")
        else:
            self.bar.unit, self.bar.n = self._state(now), self.done
            self.bar.refresh()

    def _state(self, now: float) -> str:
        parts = [f"{self.done}/{self.total} {self.unit}"]
        if self.first is not None and self.done > self.first[1]:
            rate = (self.done - self.first[1]) / max(now - self.first[0], 1e-9)
            parts.append(f"{rate:.1f} {self.unit}/s" if rate >= 0.1 else f"{60 * rate:.1f} {self.unit}/min")
            left = (self.total - self.done) / rate
            if self.done < self.total:
                parts.append(f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left")
        return ", ".join([*parts, message(self.note)] if self.note else parts)


def say(line: str) -> None:
    """Print one line for the user on the standard error, above the progress bars.

    File names and library errors in the line are cleaned: secrets are removed, and control characters are not printed.
    """
    for bar in OPEN_BARS:
        bar.clear()
    print(printable(line), file=sys.stderr, flush=True)
    for bar in OPEN_BARS:
        bar.refresh()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text, its columns as wide as their longest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def amount(size: int) -> str:
    """A number of bytes: `4.2 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def versions() -> dict[str, str]:
    """The versions of Ortho, of the packages that decide results, and of Python, and the machine type."""
    names = ("torch", "diffusers", "transformers", "ray", "pyarrow")
    here = {"python": platform.python_version(), "machine": platform.machine()}
    return {"ortho": __version__, **{name: version(name) for name in names}, **here}


def summary_json(content: Mapping[str, object]) -> str:
    return json.dumps({**redacted_all(content), "versions": versions()}, indent=1) + "\n"
