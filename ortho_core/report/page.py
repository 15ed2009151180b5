"""The report: one HTML file that carries its pictures with it and needs no script and no network.

A report is a title, what was found, and sections; a section is a list of blocks, drawn one under the other: a paragraph (a
plain string), `Heading`, `Facts`, `PictureRows`, `Cards`, `Links`, `Figure`, `Charts`, `Table` or `Folded`. Everything that
is text is escaped.
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

#: Images up to this size (pixels) are in the report as they are; larger ones are scaled down to `PREVIEW`.
EXACT = 96
PREVIEW = 192
#: Images of one `PictureRows`, beyond which it shows fewer columns.
MOST_IMAGES = 120
MOST_COLUMNS = 12


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: ClassVar = "heading"


@dataclass(frozen=True)
class Fact:
    """One figure that a reader looks for first: `512 = 510 + 2`, `rows = assigned + quarantined`."""

    value: str
    label: str


@dataclass(frozen=True)
class Facts:
    facts: Sequence[Fact]
    kind: ClassVar = "facts"


@dataclass(frozen=True)
class Cell:
    """`detail` stands small under the text. The mark says how it stands against the others that it is compared with."""

    text: str
    detail: str = ""
    mark: Literal["", "best", "tied"] = ""
    #: Shown when the pointer rests on it.
    about: str = ""


@dataclass(frozen=True)
class Table:
    """A header, and rows whose first cell names them; a row that is a plain string heads those after it.

    `caption` stands above it, `legend` are (term, meaning) pairs, listed below. Figures stand to the right, unless `text` says
    that the cells are words.
    """

    header: Sequence[Cell | str]
    rows: Sequence[Sequence[Cell | str] | str]
    legend: Sequence[tuple[str, str]] = ()
    text: bool = False
    caption: str = ""
    kind: ClassVar = "table"

    @staticmethod
    def cell(given: Cell | str) -> Cell:
        return Cell(given) if isinstance(given, str) else given


@dataclass(frozen=True)
class Embedded:
    """An image as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int

    @staticmethod
    def of(picture: Image.Image, exact: int = EXACT, preview: int = PREVIEW) -> "Embedded":
        """As PNG, pixel for pixel; a larger picture than `exact` scaled to `preview`, as WebP of high quality."""
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
    """Rows of small images whose columns correspond, a prompt over each column; on a narrow screen they scroll sideways."""

    rows: Sequence[PictureRow]
    prompts: Sequence[str]
    caption: str
    #: Width of an image on the page, in CSS pixels.
    cell: int
    kind: ClassVar = "pictures"

    @property
    def pixelated(self) -> bool:
        """Small images are enlarged by whole pixels, not smoothed."""
        width = self.rows[0].images[0].width
        return width < self.cell and self.cell % width == 0

    @staticmethod
    def of(rows: Mapping[str, "Tensor"], caption: str, prompts: Sequence[str] = ()) -> "PictureRows":
        """From uint8 images (B, 3, Y, X) by label, as many columns of them as keep the report small."""
        from ortho_core.pictures import to_picture  # a report without tensors needs no torch, which takes seconds

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
        what = self.prompts[column] if column < len(self.prompts) else f"image {column + 1}"
        return f"{row.label}: {what}" if row.label else what


@dataclass(frozen=True)
class Card:
    """Pictures of one thing side by side, and what is said of it. Where there is no picture, a text says why."""

    pictures: Sequence[Embedded | str]
    title: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    """Cards side by side as far as there is room; `labels` stand over the pictures of each.

    Without labels each card has one picture, shown whole in a square.
    """

    labels: Sequence[str]
    cards: Sequence[Card]
    caption: str = ""
    kind: ClassVar = "cards"

    @property
    def cell(self) -> int:
        """Width of a picture in CSS pixels: small ones are enlarged by whole pixels."""
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
    """A sentence and, after it, links to files beside the report: (text, relative path)."""

    text: str
    links: Sequence[tuple[str, str]]
    kind: ClassVar = "links"


@dataclass(frozen=True)
class Figure:
    """One picture and the sentence under it. A `plot` is dark on white, and inverted where the page is dark."""

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
        """A PNG that matplotlib drew, as it is."""
        with Image.open(io.BytesIO(content)) as opened:
            return Figure(Embedded.encoded(content, "png", opened.size), caption, alt or caption, True, least)


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room, else one under the other."""

    charts: Sequence[Chart]
    kind: ClassVar = "charts"


@dataclass(frozen=True)
class Folded:
    """What a reader opens when it is wanted: text as it is, such as a configuration, or further blocks."""

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
    """The whole report as HTML. `findings` are the sentences at its top, `facts` the figures beside them."""
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
    # Names of files need not be text: such a byte is shown as an escape.
    return redacted(html).encode("utf-8", "backslashreplace").decode()
