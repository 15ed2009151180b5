"""The report of how a pair set was recognised, as one line that lists everything that is read or left aside."""

from dataclasses import dataclass

from pydantic import JsonValue

from ortho_core.pairs.rows import LayoutName


@dataclass(frozen=True)
class Recognised:
    """How a pair set is read, and which files are not read."""

    layout: LayoutName
    what: str
    #: The source of the prompts.
    prompts: str
    notes: tuple[str, ...] = ()
    #: Kinds of files that are not read, each with their number.
    aside: tuple[str, ...] = ()
    #: The word for a row: `image`, or `row` for a row of a file.
    unit: str = "row"
    #: Number of images in the set's folders, if it is known and may differ from the number of rows.
    images: int | None = None

    def line(self, rows: int | None) -> str:
        notes = list(self.notes)
        if self.images is not None:
            notes.append(f"{self.images} {'image' if self.images == 1 else 'images'} in its folders")
        aside = f"left aside: {', '.join(self.aside)}" if self.aside else "nothing left aside"
        counted = "" if rows is None else f": {rows} {self.unit}{'' if rows == 1 else 's'}"
        return "; ".join([self.what + counted, self.prompts, *notes, aside])

    def record(self, rows: int) -> dict[str, JsonValue]:
        """The same as JSON values."""
        return {
            "layout": self.layout,
            "what": self.what,
            "rows": rows,
            "images": self.images,
            "prompts": self.prompts,
            "notes": list(self.notes),
            "left_aside": list(self.aside),
        }
