"""What a job says while it runs: one line that stays current on a terminal, a line now and then in a log."""

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

#: Seconds between two lines of a log, and between two looks of a bar.
LINE_EVERY_S, BAR_EVERY_S = 10.0, 0.2


#: Of a terminal that does not say its size.
NO_SIZE = {"ncols": 80, "nrows": 24}
#: Bars on the terminal, which make way for a line and come back below it.
OPEN_BARS: list[Any] = []


class Progress:
    """Counts up to `total` units: a bar on a terminal, elsewhere a line now and then, with rate, time left and a note.

    The rate is that of the units after the first that came: what came before them is start-up, and is told as that.
    """

    def __init__(
        self, name: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None, starting: str = ""
    ) -> None:
        """`starting`: what happens until the first unit comes."""
        self.name, self.total, self.unit, self.done = message(name), total, unit, done
        self.stream = stream or sys.stderr
        #: When the first units came, and how many there were by then.
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
        """Show how it ended."""
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
    """One line for the person who started the job, above the bars that there are.

    What others wrote in it, as names of files and errors of libraries, shows no secret and moves no cursor.
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


def versions() -> dict[str, str]:
    """What ran: the packages that decide numbers, Python and the machine type."""
    names = ("torch", "diffusers", "transformers", "ray", "pyarrow")
    here = {"python": platform.python_version(), "machine": platform.machine()}
    return {"ortho": __version__, **{name: version(name) for name in names}, **here}


def summary_json(content: Mapping[str, object]) -> str:
    return json.dumps({**redacted_all(content), "versions": versions()}, indent=1) + "\n"
