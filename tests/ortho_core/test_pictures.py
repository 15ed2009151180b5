"""Contact sheets hold the pixels that were put into them."""

import io

import numpy as np
import torch

from ortho_core.pictures import contact_sheet, grid, labelled_rows, load_sheet, save_png, to_bytes, to_picture

IMAGES = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_brightness_is_rounded_to_the_nearest_grey_level_and_ends_at_black_and_white():
    levels = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 1.0, 7.0])
    found = to_bytes(levels.expand(1, 3, 1, 8))
    assert found.dtype == torch.uint8
    assert found[0, 0, 0].tolist() == [0, 0, 0, 1, 254, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(every.float().div(255).expand(1, 3, 1, 256))[0, 0, 0], every)


def test_a_sheet_is_taken_apart_as_it_was_put_together(tmp_path):
    save_png(IMAGES, tmp_path / "sheet.png", columns=2)
    assert torch.equal(load_sheet(tmp_path / "sheet.png", (6, 4))[:5], IMAGES)
    assert torch.equal(load_sheet(io.BytesIO((tmp_path / "sheet.png").read_bytes()), (6, 4))[:5], IMAGES)


def test_a_grid_shows_every_image_in_reading_order():
    sheet = grid(IMAGES, columns=3, gap=1)
    assert sheet.shape == (3, 15, 16)
    assert torch.equal(sheet[:, 8:14, 6:10], IMAGES[4])


def test_labelled_rows_enlarge_by_whole_pixels():
    picture = torch.from_numpy(np.array(labelled_rows({"a": IMAGES}, scale=2)))
    assert torch.equal(picture[0:12:2, 150 : 150 + 8 : 2].permute(2, 0, 1), IMAGES[0])


def test_the_rows_stand_in_their_order_on_white():
    black, grey = torch.zeros(2, 3, 6, 4, dtype=torch.uint8), torch.full((1, 3, 6, 4), 100, dtype=torch.uint8)
    sheet = np.array(labelled_rows({"black": black, "grey": grey}))[:, 150:]
    assert (sheet[:6, :4] == 0).all()
    assert (sheet[9:15, :4] == 100).all()
    assert (sheet[9:15, 7:11] == 255).all()  # the second row has one image fewer


def test_a_contact_sheet_shows_pictures_large_enough_to_see():
    small = [to_picture(image) for image in IMAGES]
    sheet = np.array(contact_sheet(small, columns=3, cell=25))  # 6 pixels high, so four times as large
    assert sheet.shape == (2 * (24 + 6) + 6, 3 * (16 + 6) + 6, 3)
    second_row = torch.from_numpy(sheet[36:60:4, 28:44:4].copy()).permute(2, 0, 1)
    assert torch.equal(second_row, IMAGES[4])
    large = [picture.resize((800, 1200)) for picture in small]
    assert contact_sheet(large, columns=8).size == (5 * (171 + 6) + 6, 256 + 12)
    captioned = np.array(contact_sheet(small, 3, ["a long prompt " * 9] * 5, cell=25))
    assert captioned.shape[0] > sheet.shape[0]
    assert (captioned[32:64, 6:22] < 128).any()


def test_images_in_floats_are_shown_as_their_grey_levels():
    floats = IMAGES / 255
    assert labelled_rows({"a": floats, "b": IMAGES}).tobytes() == labelled_rows({"a": IMAGES, "b": IMAGES}).tobytes()
