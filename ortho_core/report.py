"""The report: one HTML file that carries its pictures with it and needs no script and no network."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Figure:
    """A picture, base64-encoded PNG, and the sentence under it."""

    data: str
    caption: str

    @staticmethod
    def of(picture: Image.Image | Path, caption: str) -> "Figure":
        if isinstance(picture, Path):
            content = picture.read_bytes()
        else:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", optimize=True)
            content = buffer.getvalue()
        return Figure(base64.b64encode(content).decode(), caption)


@dataclass(frozen=True)
class Section:
    title: str
    paragraphs: list[str] = field(default_factory=list)
    table: Table | None = None
    figures: list[Figure] = field(default_factory=list)
    #: Long text shown folded, such as a configuration.
    text: str = ""


def render(title: str, subtitle: str, sections: list[Section]) -> str:
    """The whole report as HTML; every text is escaped."""
    source = (Path(__file__).parent / "report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(title=title, subtitle=subtitle, sections=sections)
