"""What was recognised at a place, in one line that says all that was done with what lies there."""

from dataclasses import dataclass

from pydantic import JsonValue

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
    #: What a row is: an `image`, or a `row` of a file that names one.
    unit: str = "row"
    #: Images that lie there, where that is known and need not be the number of rows.
    images: int | None = None

    def line(self, rows: int | None) -> str:
        notes = list(self.notes)
        if self.images is not None:
            notes.append(f"{self.images} {'image lies' if self.images == 1 else 'images lie'} there")
        aside = f"left aside: {', '.join(self.aside)}" if self.aside else "nothing left aside"
        counted = "" if rows is None else f": {rows} {self.unit}{'' if rows == 1 else 's'}"
        return "; ".join([self.what + counted, self.prompts, *notes, aside])

    def record(self, rows: int) -> dict[str, JsonValue]:
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
