"""A disk on which writing fails, of this process alone; what a verb says last."""

import os
import sys
from pathlib import Path

#: What Python reports before it writes: the event, and which of its arguments is the place.
WRITES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1}


class Disk:
    """A folder below which writing fails with `code`, once `left` more writes have been done."""

    def __init__(self) -> None:
        self.folder, self.code, self.left, self.failed = "", 0, 0, ""
        sys.addaudithook(self.hook)  # there is no taking it away: make one, and leave `folder` empty

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        if not self.folder or (event != "open" and event not in WRITES):
            return
        if event == "open":
            place, mode, flags = args
            if not (set(mode or "") & set("wxa+") or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))):
                return
        else:
            place = args[WRITES[event]]
        if isinstance(place, str | Path) and str(place).startswith(self.folder):
            self.left -= 1
            if self.left < 0:
                self.failed = str(place)
                raise OSError(self.code, os.strerror(self.code), self.failed)


def last_line(verb: str, text: str) -> str:
    """The last of what a verb said, which has no traceback in it."""
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith(f"ortho {verb}: ")
    return text.splitlines()[-1]
