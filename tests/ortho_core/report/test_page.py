"""The report's page: what it escapes, what it embeds, and how a browser shows it."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from ortho_core.pictures import to_picture
from ortho_core.report.charts import Chart, Series
from ortho_core.report.page import (
    EXACT,
    MOST_IMAGES,
    PREVIEW,
    Card,
    Cards,
    Cell,
    Charts,
    Embedded,
    Fact,
    Figure,
    Folded,
    Heading,
    Links,
    PictureRows,
    Section,
    Table,
    render,
)
from tests.chromium import check_in_browser, check_source


def images(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


IMAGES = images(5, (6, 4))
NASTY = "<script>alert('1')</script> & \"quotes\""


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def page(size=(32, 32), columns=12):
    rows = PictureRows.of({"target": images(16, size), NASTY: images(16, size, 1)}, "cap", [NASTY] * columns)
    chart = Chart(NASTY, "update", [Series(NASTY, [1, 2], [0.5, 0.1], points=True, notes=[NASTY, "b"])], log_y=True)
    wide = Table(
        [Cell(NASTY, "d"), *["a long title"] * 30], [NASTY, [Cell(NASTY, mark="best", about=NASTY)] + ["1"] * 30]
    )
    picture = Embedded.of(Image.new("RGB", (64, 20), "red"))
    gallery = Cards((), [Card([picture], NASTY, [NASTY]), Card([picture], "")], NASTY)
    plot = Figure.plot_of(png(Image.new("RGB", (1600, 400), "white")), NASTY)
    sections = [
        Section("One", [NASTY, Heading(NASTY), rows, gallery, Charts([chart]), wide]),
        Section(
            "Two", [plot, Folded(NASTY, text=NASTY + " x" * 400, blocks=[Table(["a"], [["b"]], [(NASTY, NASTY)])])]
        ),
    ]
    return render(NASTY, NASTY, sections, [NASTY], [Fact(NASTY, NASTY)])


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_all_text_is_escaped(tmp_path):
    (tmp_path / "report.html").write_text(page())
    assert check_source(tmp_path / "report.html") == 27
    assert "<script" not in page()
    assert '"quotes"' not in page()  # in an attribute it would end it


def test_every_element_that_is_opened_is_closed():
    open_ones = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                open_ones.append(tag)

        def handle_startendtag(self, tag, attributes):
            pass

        def handle_endtag(self, tag):
            assert open_ones.pop() == tag

    Tags().feed(page())
    assert open_ones == []


def test_small_images_are_embedded_as_they_are_and_large_ones_scaled_down():
    small = PictureRows.of({"a": images(3, (32, 20))}, "")
    assert torch.equal(
        torch.from_numpy(np.array(opened(small.rows[0].images[1].uri))).permute(2, 0, 1), images(3, (32, 20))[1]
    )
    assert small.cell % 20 == 0
    assert small.pixelated
    large = PictureRows.of({"a": images(3, (512, 256))}, "")
    with opened(large.rows[0].images[0].uri) as picture:
        assert picture.size == (PREVIEW // 2, PREVIEW)
    assert not large.pixelated


@pytest.mark.parametrize(("models", "size"), [(5, EXACT), (5, 1024), (40, 32)])
def test_a_report_of_any_images_stays_within_a_few_megabytes(models, size):
    noise = images(12, (size, size))  # what compresses least
    rows = PictureRows.of({f"model {i}": noise for i in range(models)}, "")
    count = sum(len(row.images) for row in rows.rows)
    assert count <= max(MOST_IMAGES, 4 * models)
    assert sum(len(image.uri) for row in rows.rows for image in row.images) < 5e6


def test_sections_are_linked_by_their_titles():
    text = page()
    assert re.findall(r'<a href="#([a-z-]+)">', text) == re.findall(r'<section id="([a-z-]+)">', text) == ["one", "two"]


def test_a_browser_shows_it_on_a_phone_and_on_a_desktop(tmp_path):
    (tmp_path / "report.html").write_text(page())
    check_in_browser(tmp_path / "report.html", tmp_path / "browser", images=27)


def test_a_browser_shows_images_that_were_scaled_down(tmp_path):
    (tmp_path / "report.html").write_text(page(size=(300, 400)))
    check_in_browser(tmp_path / "report.html", tmp_path / "browser", images=19)


@pytest.mark.parametrize(
    "fault",
    [
        '<div style="width: 2000px">wide</div>',
        '<img src="missing.png" alt="a">',
        '<img src="http://127.0.0.1:9/a.png" alt="a">',
        '<img src="data:image/png;base64,AAAA" alt="a">',
    ],
)
def test_the_browser_notices_a_fault(tmp_path, fault):
    (tmp_path / "report.html").write_text(page().replace("</main>", f"{fault}</main>"))
    with pytest.raises(AssertionError):
        check_in_browser(tmp_path / "report.html", tmp_path / "browser", images=27 + fault.count("<img"))


@pytest.mark.parametrize("size", [(32, 32), (300, 400)])
def test_cards_have_their_pictures_side_by_side_and_say_where_one_is_missing(size, tmp_path):
    first, second = (Embedded.of(to_picture(image)) for image in images(2, size))
    cards = Cards(["target", NASTY], [Card([first, second], NASTY, [NASTY]), Card([NASTY, second], "gone")], NASTY)
    assert cards.cell == (96 if size == (32, 32) else 104)
    assert cards.pixelated(first) == (size == (32, 32))
    links = Links(NASTY, [(NASTY, "cycle_01/assignments/report.html"), ("two", "b.html")])
    text = render("a", "b", [Section("One", [cards, links]), Section("Two", [Cards(["x"], [Card(["none"], "y")])])])
    (tmp_path / "report.html").write_text(text)
    assert check_source(tmp_path / "report.html") == 3
    assert NASTY not in text
    assert text.count('<span class="none"') == 2
    assert '<a href="cycle_01/assignments/report.html">' in text
    check_in_browser(tmp_path / "report.html", tmp_path / "browser", images=3)
