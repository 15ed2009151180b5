"""What a job says while it runs: one line that stays current on a terminal, a line now and then in a log."""

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TextIO

from ortho_core import __version__


class Progress:
    """Counts up to `total` units and shows rate, time left and a note."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.first = done
        self.started = self.shown = time.monotonic()
        self.note = ""
        self.fresh = True

    def advance(self, units: int, note: str = "") -> None:
        self.done += units
        self.note = note
        self.fresh = True
        now = time.monotonic()
        # A terminal line is redrawn; a log gets a line every ten seconds, and the last one from `close`.
        if now - self.shown >= (0.2 if self.terminal else 10):
            self.shown = now
            self._show(now)

    def close(self) -> None:
        if self.fresh:
            self._show(time.monotonic())
        if self.terminal:
            self.stream.write("\n")

    def _show(self, now: float) -> None:
        self.fresh = False
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate else 0
        parts = [f"{self.name}: {self.done}/{self.total} {self.unit}", f"{rate:.1f} {self.unit}/s"]
        if self.done < self.total and rate:
            parts.append(f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left")
        line = ", ".join([*parts, self.note] if self.note else parts)
        self.stream.write(f"\r\x1b[K{line}" if self.terminal else line + "\n")
        self.stream.flush()


def say(message: str) -> None:
    """One line for the person who started the job."""
    print(message, file=sys.stderr, flush=True)


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
    return json.dumps({**content, "versions": versions()}, indent=1) + "\n"
