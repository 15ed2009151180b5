"""What was recognised at a place, in one line that says all that was done with what lies there."""

from dataclasses import dataclass
from typing import Any

from ortho_core.pairs.rows import LayoutName


@dataclass(frozen=True)
class Recognised:
    """How a pair set is read, and what of it is not."""

    layout: LayoutName
    what: str
    #: Where the prompts come from.
    prompts: str
    notes: tuple[str, ...] = ()
    #: What is not read, each with its number.
    aside: tuple[str, ...] = ()
    #: Images that lie there, where that is known.
    images: int | None = None

    def line(self, rows: int) -> str:
        notes = list(self.notes)
        if self.images is not None and self.images != rows:
            notes.append(f"{self.images} images lie there")
        aside = f"left aside: {', '.join(self.aside)}" if self.aside else "nothing left aside"
        return "; ".join([f"{self.what}: {rows} {'row' if rows == 1 else 'rows'}", self.prompts, *notes, aside])

    def record(self, rows: int) -> dict[str, Any]:
        """The same for a machine."""
        return {
            "layout": self.layout,
            "what": self.what,
            "rows": rows,
            "images": self.images,
            "prompts": self.prompts,
            "notes": list(self.notes),
            "left_aside": list(self.aside),
        }
