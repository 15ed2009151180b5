import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ortho_core.errors import BadRow
from ortho_core.pairs.images import SUFFIXES, decode_image


def encoded(picture, form="PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def square(mode="RGB", size=(8, 8), colour=128) -> Image.Image:
    return Image.new(mode, size, colour)


def reason(content) -> str:
    with pytest.raises(BadRow) as raised:
        decode_image(content, (8, 8))
    return raised.value.reason


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (255, 0, 51), (255, 0, 51)),
        ("L", 51, (51, 51, 51)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("LA", (0, 255), (0, 0, 0)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_colour_modes_come_out_as_rgb_with_alpha_over_white(mode, colour, expected):
    picture = decode_image(encoded(square(mode, colour=colour)), (4, 6))
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == np.uint8
    assert picture[1, 2].tolist() == list(expected)


def test_a_transparent_palette_colour_is_white():
    content = encoded(square("P", colour=0), transparency=0)
    assert decode_image(content, (4, 4)).min() == 255


def test_sixteen_bit_grey_keeps_its_range_and_cmyk_its_colour():
    deep = Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16))
    assert decode_image(encoded(deep), (4, 4))[2, 2].tolist() == [128] * 3
    deep = Image.fromarray(np.full((4, 4), 32896, dtype=np.int32))
    assert decode_image(encoded(deep, "TIFF"), (4, 4))[2, 2].tolist() == [128] * 3
    cyan = decode_image(encoded(square("CMYK", colour=(255, 0, 0, 0)), "JPEG"), (8, 8))
    assert cyan[4, 4].tolist() == pytest.approx([0, 255, 255], abs=5)


def test_exif_rotation_is_applied_and_the_centre_is_kept():
    picture = Image.new("RGB", (12, 4), "black")
    picture.paste("white", (0, 0, 2, 4))  # a white stripe at the left end
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: the left end becomes the top
    content = encoded(picture, exif=exif)
    upright = decode_image(content, (12, 4))
    assert upright[0].min() > 230
    assert upright[4:].max() < 25
    assert decode_image(content, (4, 4)).max() < 25


def test_damaged_exif_does_not_cost_the_image():
    for exif in (b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x07\0\0\0\x01\xff"):
        assert decode_image(encoded(square(), "JPEG", exif=exif), (4, 4)).shape == (4, 4, 3)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_no_image(form):
    moving = encoded(square(colour=0), form, save_all=True, append_images=[square(colour=(255, 0, 0))])
    assert reason(moving) == "animated"


def test_a_preview_inside_a_jpeg_is_not_a_frame():
    content = encoded(square(colour=(250, 0, 0)), "MPO", save_all=True, append_images=[square(size=(4, 4))])
    assert decode_image(content, (4, 4))[2, 2].tolist() == pytest.approx([250, 0, 0], abs=5)


def test_what_does_not_decode_is_a_bad_row():
    noise = Image.effect_noise((64, 64), 50)
    whole = encoded(noise)
    assert reason(b"") == "undecodable-image"
    assert reason(b"not an image") == "undecodable-image"
    assert reason(whole[: len(whole) // 2]) == "undecodable-image"
    assert reason(encoded(noise, "JPEG")[:900]) == "undecodable-image"
    damaged = bytearray(whole)
    damaged[60:90] = bytes(30)
    assert reason(bytes(damaged)) == "undecodable-image"


def test_an_image_too_large_to_decode_is_refused_by_its_header():
    assert reason(encoded(square("1", (9_400, 9_000), 0))) == "too-large"
    assert reason(encoded(square("1", (20_000, 10_000), 0))) == "too-large"


def test_a_picture_that_is_a_program_is_not_run():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    assert reason(postscript) == "undecodable-image"
    with pytest.raises(BadRow, match="it is none of"):
        decode_image(postscript, (8, 8))


def test_messages_name_the_image_and_what_was_found():
    with pytest.raises(BadRow, match=r"^row 3: a\.gif has 2 frames"):
        decode_image(
            encoded(square("L"), "GIF", save_all=True, append_images=[square("L", colour=1)]), (8, 8), "row 3: a.gif"
        )
    with pytest.raises(BadRow, match=r"does not decode: it is none of JPEG, .*"):
        decode_image(b"GIF", (8, 8))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 3_000_000)),
        chunk(b"tEXt", b"key\0" + b"x" * 100)[:-4] + b"\0\0\0\0",
        *(chunk(kind, b"\0") for kind in (b"pHYs", b"gAMA", b"cHRM")),  # cut off
    ],
)
@pytest.mark.parametrize("after_the_pixels", [False, True])
def test_what_a_png_says_besides_its_pixels_does_not_cost_them(metadata, after_the_pixels):
    plain = encoded(square(colour=(250, 10, 0)))
    at = len(plain) - 12 if after_the_pixels else 33
    content = plain[:at] + metadata + plain[at:]
    assert np.array_equal(decode_image(content, (8, 8)), decode_image(plain, (8, 8)))


def test_the_length_of_a_segment_of_metadata_may_be_wrong():
    plain = encoded(square(colour=(250, 10, 0)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 12) + b"Exif\0\0II*\0" + b"\x08\0\0\0 beyond"
    assert np.array_equal(decode_image(plain[:2] + segment + plain[2:], (8, 8)), decode_image(plain, (8, 8)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:77\nsize 5\n", "git-lfs"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF: install pillow-heif to read it"),
    ],
)
def test_what_lies_in_the_place_of_an_image_is_told(content, says):
    with pytest.raises(BadRow, match=says) as raised:
        decode_image(content, (8, 8))
    assert raised.value.reason == "undecodable-image"


def broken_exif(orientation: int) -> bytes:
    """An orientation, and a resolution whose denominator is zero."""
    tag = struct.pack("<HHI", 0x112, 3, 1) + struct.pack("<HH", orientation, 0)
    bad = struct.pack("<HHI", 0x11A, 10, 1) + struct.pack("<I", 38)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tag + bad + b"\0\0\0\0" + struct.pack("<ii", -1, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_alone_is_taken_from_exif_and_the_rest_may_be_broken(orientation):
    corner = Image.new("RGB", (16, 16), "black")
    corner.paste("white", (0, 0, 8, 8))
    sound = Image.Exif()
    sound[0x112] = orientation
    expected = decode_image(encoded(corner, "JPEG", quality=95, exif=sound), (16, 16))
    assert np.array_equal(
        decode_image(encoded(corner, "JPEG", quality=95, exif=broken_exif(orientation)), (16, 16)), expected
    )


def test_an_orientation_that_is_none_turns_nothing():
    picture = encoded(square(colour=(250, 0, 0)), "JPEG", exif=broken_exif(77))
    assert np.array_equal(
        decode_image(picture, (8, 8)), decode_image(encoded(square(colour=(250, 0, 0)), "JPEG"), (8, 8))
    )


def deep(values, **options) -> bytes:
    return encoded(Image.fromarray(np.asarray(values)), "TIFF", **options)


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (deep(RAMP.astype(np.float32)), RAMP * 255),
        (deep((RAMP * 255).round().astype(np.float32)), RAMP * 255),
        (deep((RAMP * 255).round().astype(np.int32)), RAMP * 255),
        (deep((RAMP * 65535).round().astype(np.int32)), RAMP * 255),
        (deep((RAMP * 65535).round().astype(np.uint16)), RAMP * 255),
        (deep((RAMP * 4000).astype(np.float32), tiffinfo={340: 0.0, 341: 4000.0}), RAMP * 255),
    ],
)
def test_grey_of_more_than_eight_bits_is_scaled_by_its_range(content, expected):
    assert np.abs(decode_image(content, (8, 8))[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        RAMP * 37.5,
        RAMP - 0.5,
        RAMP * 70_000,
        np.where(RAMP > 0.5, np.nan, RAMP),
        (RAMP * 1e8).astype(np.int32),
        (RAMP * 9 - 4).astype(np.int32),
    ],
)
def test_a_range_that_is_not_known_is_refused(values):
    values = np.asarray(values)
    content = deep(values if values.dtype == np.int32 else values.astype(np.float32))
    assert reason(content) == "unknown-range"


def test_of_a_tiff_with_thumbnails_the_first_page_is_the_image():
    page, small = square(size=(64, 64), colour=(200, 0, 0)), square(size=(32, 32), colour=0)
    pyramid = encoded(page, "TIFF", save_all=True, append_images=[small, square(size=(16, 16), colour=0)])
    assert decode_image(pyramid, (8, 8))[4, 4].tolist() == [200, 0, 0]
    pages = encoded(page, "TIFF", save_all=True, append_images=[square(size=(64, 64), colour=0)])
    assert reason(pages) == "animated"


def test_every_format_that_is_decoded_has_its_suffixes_in_the_one_list():
    assert {".png", ".jpg", ".jfif", ".avif", ".jp2", ".webp", ".tif", ".pgm", ".tga"} <= SUFFIXES
    assert not {".pdf", ".eps", ".mpg", ".h5", ".txt", ""} & SUFFIXES
