import torch

from ortho_core.pictures import grid, labelled_rows, load_sheet, save_png
from ortho_core.report import Cell, Figure, Section, Table, render

IMAGES = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_sheet_is_taken_apart_as_it_was_put_together(tmp_path):
    save_png(IMAGES, tmp_path / "sheet.png", columns=2)
    assert torch.equal(load_sheet(tmp_path / "sheet.png", (6, 4))[:5], IMAGES)


def test_a_grid_shows_every_image_in_reading_order():
    sheet = grid(IMAGES, columns=3, gap=1)
    assert sheet.shape == (3, 15, 16)
    assert torch.equal(sheet[:, 8:14, 6:10], IMAGES[4])


def test_the_report_escapes_text_and_carries_its_pictures():
    picture = labelled_rows({"<b>": IMAGES}, scale=2)
    table = Table(["model", "x"], [[Cell("<i>base"), Cell("1", best=True)]])
    html = render("A <title>", "sub", [Section("S", ["<script>"], table, [Figure.of(picture, "cap")], "a: <b>")])
    assert "<script>" not in html
    assert "<i>base" not in html
    assert html.count("data:image/png;base64,") == 1
    assert 'class="best">1<' in html
    assert "http" not in html
