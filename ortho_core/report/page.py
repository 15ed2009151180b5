"""The report: one HTML file with embedded pictures that needs no script and no network.

A report has a title, findings and sections. A section is a list of blocks, one below the other: a paragraph (a plain string),
`Heading`, `Facts`, `PictureRows`, `Cards`, `Links`, `Figure`, `Charts`, `Table` or `Folded`. All text is escaped.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import jinja2
from PIL import Image

from ortho_core.report.charts import COLOURS, Chart
from ortho_core.text.plain_text import redacted

if TYPE_CHECKING:
    from torch import Tensor

#: Images up to this size (pixels) are embedded unchanged; larger ones are scaled down to `PREVIEW`.
EXACT = 96
PREVIEW = 192
#: Largest number of images in one `PictureRows`; with more rows it shows fewer columns.
MOST_IMAGES = 120
MOST_COLUMNS = 12


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: ClassVar = "heading"


@dataclass(frozen=True)
class Fact:
    """One figure that readers look for first: `512 = 510 + 2` with the label `rows = assigned + quarantined`."""

    value: str
    label: str


@dataclass(frozen=True)
class Facts:
    facts: Sequence[Fact]
    kind: ClassVar = "facts"


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `detail` is small text below `text`. `mark` is the result of the comparison with other cells."""

    text: str
    detail: str = ""
    mark: Literal["", "best", "tied"] = ""
    #: Shown when the pointer is over the cell.
    about: str = ""


@dataclass(frozen=True)
class Table:
    """A header, and rows whose first cell names them; a row that is a plain string is a heading for the rows after it.

    `caption` is above the table; `legend` has (term, meaning) pairs, listed below it. Cells are aligned to the right, unless
    `text` is set for cells with words.
    """

    header: Sequence[Cell | str]
    rows: Sequence[Sequence[Cell | str] | str]
    legend: Sequence[tuple[str, str]] = ()
    text: bool = False
    caption: str = ""
    kind: ClassVar = "table"

    @staticmethod
    def cell(content: Cell | str) -> Cell:
        return Cell(content) if isinstance(content, str) else content


@dataclass(frozen=True)
class Embedded:
    """An image as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int

    @staticmethod
    def of(picture: Image.Image, exact: int = EXACT, preview: int = PREVIEW) -> "Embedded":
        """A picture as PNG, pixel for pixel; a picture larger than `exact` is scaled to `preview` and encoded as WebP."""
        buffer = io.BytesIO()
        if max(picture.size) > exact:
            picture = picture.copy()
            picture.thumbnail((preview, preview), Image.Resampling.LANCZOS)
            picture.save(buffer, "WEBP", quality=90)
            return Embedded.encoded(buffer.getvalue(), "webp", picture.size)
        picture.save(buffer, "PNG", optimize=True)
        return Embedded.encoded(buffer.getvalue(), "png", picture.size)

    @staticmethod
    def encoded(content: bytes, kind: str, size: tuple[int, int]) -> "Embedded":
        return Embedded(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *size)


@dataclass(frozen=True)
class PictureRow:
    label: str
    images: Sequence[Embedded]


@dataclass(frozen=True)
class PictureRows:
    """Rows of small images with corresponding columns and a prompt above each column; they scroll on a narrow screen."""

    rows: Sequence[PictureRow]
    prompts: Sequence[str]
    caption: str
    #: Width of an image on the page, in CSS pixels.
    cell: int
    kind: ClassVar = "pictures"

    @property
    def pixelated(self) -> bool:
        """Whether the images are enlarged by a whole factor, without smoothing."""
        width = self.rows[0].images[0].width
        return width < self.cell and self.cell % width == 0

    @staticmethod
    def of(rows: Mapping[str, "Tensor"], caption: str, prompts: Sequence[str] = ()) -> "PictureRows":
        """Rows from uint8 images (B, 3, Y, X) by label, with a limited number of columns to keep the report small."""
        from ortho_core.pictures import to_picture  # not above: it imports torch, which takes seconds

        Y, X = next(iter(rows.values())).shape[-2:]
        most = MOST_COLUMNS if max(Y, X) <= EXACT else MOST_COLUMNS * 2 // 3
        count = max(4, min(most, MOST_IMAGES // len(rows)))
        drawn = [PictureRow(k, [Embedded.of(to_picture(i)) for i in images[:count]]) for k, images in rows.items()]
        cell = X * max(1, round(64 / X)) if max(Y, X) <= EXACT else 112
        return PictureRows(drawn, prompts[:count], caption, cell)

    @property
    def labelled(self) -> bool:
        return any(row.label for row in self.rows)

    def alt(self, row: PictureRow, column: int) -> str:
        text = self.prompts[column] if column < len(self.prompts) else f"image {column + 1}"
        return f"{row.label}: {text}" if row.label else text


@dataclass(frozen=True)
class Card:
    """Pictures of one row next to each other, with a title and lines of text. A missing picture is replaced by its reason."""

    pictures: Sequence[Embedded | str]
    title: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    """Cards in as many columns as fit; `labels` are above the pictures of each card.

    Without labels each card has one picture, which is fitted into a square.
    """

    labels: Sequence[str]
    cards: Sequence[Card]
    caption: str = ""
    kind: ClassVar = "cards"

    @property
    def cell(self) -> int:
        """Width of a picture in CSS pixels: small ones are enlarged by a whole factor."""
        if not self.labels:
            return 112
        widths = [p.width for card in self.cards for p in card.pictures if isinstance(p, Embedded)]
        width = widths[0] if widths else PREVIEW
        return width * max(1, round(96 / width)) if width <= EXACT else 104

    def pixelated(self, picture: Embedded) -> bool:
        if not self.labels:
            return max(picture.width, picture.height) <= EXACT
        return picture.width < self.cell and self.cell % picture.width == 0


@dataclass(frozen=True)
class Links:
    """A sentence, followed by links to files next to the report: (text, relative path)."""

    text: str
    links: Sequence[tuple[str, str]]
    kind: ClassVar = "links"


@dataclass(frozen=True)
class Figure:
    """One picture and the sentence below it. A `plot` is dark on white, and inverted on a dark page."""

    image: Embedded
    caption: str
    alt: str
    plot: bool = False
    #: Width in CSS pixels below which it scrolls sideways instead of shrinking.
    least: int = 0
    kind: ClassVar = "figure"

    @staticmethod
    def of(picture: Image.Image, caption: str, alt: str = "") -> "Figure":
        return Figure(Embedded.of(picture, exact=256, preview=1024), caption, alt or caption)

    @staticmethod
    def plot_of(content: bytes, caption: str, alt: str = "", least: int = 720) -> "Figure":
        """A PNG from matplotlib, unchanged."""
        with Image.open(io.BytesIO(content)) as opened:
            return Figure(Embedded.encoded(content, "png", opened.size), caption, alt or caption, True, least)


@dataclass(frozen=True)
class Charts:
    """Charts next to each other where they fit, else below each other."""

    charts: Sequence[Chart]
    kind: ClassVar = "charts"


@dataclass(frozen=True)
class Folded:
    """A part that is closed at first: preformatted text, such as a configuration, or further blocks."""

    summary: str
    text: str = ""
    blocks: Sequence["Block"] = ()
    kind: ClassVar = "folded"


Block = str | Heading | Facts | Table | PictureRows | Cards | Links | Figure | Charts | Folded


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block] = field(default_factory=list)

    @property
    def id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render(
    title: str, subtitle: str, sections: Sequence[Section], findings: Sequence[str] = (), facts: Sequence[Fact] = ()
) -> str:
    """The complete report as HTML. `findings` are the sentences at its top, `facts` the figures next to them."""
    source = (Path(__file__).parent / "page.html.j2").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(source)
    html = page.render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        findings=findings,
        facts=Facts(facts),
        cell=Table.cell,
        colours=COLOURS,
    )
    # File names may have bytes that are not text: these are escaped.
    return redacted(html).encode("utf-8", "backslashreplace").decode()
