"""Progress of a training run, from the log that its workers write."""

import threading
from pathlib import Path

from ortho_core.text.parsing import json_object
from rayjobs.verb.console import Progress


class follow:
    """Show the updates that the workers have logged so far, while the block runs."""

    def __init__(self, file: Path, title: str, updates: int) -> None:
        self.file = file
        done, _ = last_logged(self.file)
        self.progress = Progress(title, updates, "updates", done=done, starting="starting")
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._show()
        self.progress.close()

    def _run(self) -> None:
        while not self.stop.wait(1.0):
            self._show()

    def _show(self) -> None:
        updates, loss = last_logged(self.file)
        if updates > self.progress.done:
            self.progress.advance(updates - self.progress.done, f"loss {loss:.4f}")


def last_logged(history: Path) -> tuple[int, float]:
    """The last update in a training log, and its loss; 0 where there is none yet."""
    try:
        with history.open("rb") as stream:
            stream.seek(max(0, history.stat().st_size - 8192))
            lines = stream.read().decode(errors="replace").splitlines()
        entry = json_object([line for line in lines if '"group": "train"' in line][-1], "a line")
        return int(entry["update"]), float(entry["loss"])
    except (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError):
        return 0, 0.0
