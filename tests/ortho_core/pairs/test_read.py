import numpy as np
import pytest
import torch
from PIL import Image

from ortho_core.errors import UserError
from ortho_core.pairs.images import decode_image
from ortho_core.pairs.read import read_images, read_pairs

SIZE = (32, 32)


@pytest.fixture(scope="module")
def file(digits):
    return digits / "images" / "0000.png"


def test_every_form_of_an_image_is_the_same_image(file):
    expected = torch.tensor(decode_image(file.read_bytes(), SIZE)).permute(2, 0, 1) / 255
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    pixels = np.array(picture)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (file, str(file), picture, pixels, tensor, tensor / 255, tensor[None] / 255, [file]):
        read = read_images(image, SIZE)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, expected[None], rtol=0, atol=1e-6)
    assert read_images([file, picture, tensor], SIZE).shape == (3, 3, 32, 32)


def test_images_of_other_sizes_are_fitted_and_turned_upright(file, tmp_path):
    wide = Image.new("RGB", (64, 16), "red")
    wide.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        torch.testing.assert_close(
            read_images(opened, (64, 16)), read_images(tmp_path / "turned.png", (64, 16)), rtol=0, atol=0
        )
    assert read_images(torch.rand(3, 40, 50), SIZE).shape == (1, 3, 32, 32)
    assert read_images(np.zeros((9, 9), np.uint8), SIZE).sum() == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "image nowhere.png cannot be read: No such file"),
        (".", "is a folder: use read_pairs"),
        (torch.full((3, 32, 32), 2.0), "values from 2 to 2; accepted"),
        (torch.full((3, 32, 32), torch.nan), "values from nan to nan"),
        (torch.zeros(32, 32), "accepted: .3, Y, X."),
        (np.zeros((32, 32, 3)), "uint8, from 0 to 255"),
        ([], "no images"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(UserError, match=message):
        read_images(image, SIZE)


def test_pairs_are_the_first_usable_rows(small_pairs):
    (small_pairs / "images" / "0002.png").write_bytes(b"broken")
    pairs = read_pairs(str(small_pairs), SIZE, 4)
    assert len(pairs) == len(pairs.images) == 4
    assert [failure.row for failure in pairs.failures] == [2]
    torch.testing.assert_close(
        pairs.images[2:3], read_images(small_pairs / "images" / "0003.png", SIZE), rtol=0, atol=1e-6
    )
    assert repr(pairs) == "LoadedPairs(4 images 3 × 32 × 32, 1 rows failed)"
    assert len(read_pairs(small_pairs, SIZE)) == 23


def test_images_without_captions_take_one_prompt(small_pairs):
    folder = small_pairs / "images"
    with pytest.raises(UserError, match="prompt=TEXT gives one to all"):
        read_pairs(folder, SIZE)
    assert set(read_pairs(folder, SIZE, 3, prompt="a digit").prompts) == {"a digit"}


def test_a_set_without_a_usable_row_is_refused(small_pairs):
    with pytest.raises(UserError, match="rows 0: give at least 1"):
        read_pairs(small_pairs, SIZE, 0)
    for image in (small_pairs / "images").iterdir():
        image.write_bytes(b"")
    with pytest.raises(UserError, match=r"has no usable row: row 0: .* is empty"):
        read_pairs(small_pairs, SIZE)
