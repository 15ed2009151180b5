"""Which rows of a set are looked at, and what is seen of each."""

import io

import numpy as np
import pytest
from PIL import Image

from ortho_core.errors import BadRow
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, PairFields
from ortho_core.pairs.survey.sample import ROWS_OF_A_PLACE, SeenRow, look_at, picture_of, spread
from tests.ortho_core.pairs.made import KINDS, read_all, write_images, write_lines, write_set


def test_a_sample_is_spread_over_the_whole_set_and_is_the_whole_set_where_that_is_small(tmp_path):
    prompts = [f"number {i}" for i in range(1_000)]
    write_images(tmp_path, "0.png")
    write_lines(tmp_path / "pairs.jsonl", *[{"prompt": text, "image": "0.png"} for text in prompts])
    pairs = PairSet(tmp_path)
    rows = [one.pair.row for one in look_at(pairs, 100)]
    assert len(rows) == 100
    assert rows == sorted(set(rows)) == [one.pair.row for one in look_at(pairs, 100)]
    assert rows[0] == 0
    assert rows[-1] > 700
    assert [one.pair.prompt for one in look_at(pairs, 5_000)] == prompts
    shards = pairs.shards(ROWS_OF_A_PLACE)
    assert spread(shards, 10**9) == shards
    assert len(list(look_at(pairs, 1))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_shows_the_image_again_after_the_look(kind, tmp_path):
    pairs = PairSet(write_set(kind, tmp_path / "set", ["a", "b", "c", "d"]))
    seen = list(look_at(pairs, 10))
    assert [one.pair.prompt for one in seen] == ["a", "b", "c", "d"]
    assert all(one.pair.content is None for one in seen)
    assert [picture_of(pairs, one.pair).getpixel((0, 0)) for one in seen] == [(i, i, i) for i in range(4)]


def test_what_cannot_be_used_has_the_reason_that_the_e_step_gives(tmp_path):
    write_images(tmp_path, "good.png")
    (tmp_path / "junk.png").write_bytes(b"junk")
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 90)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((4, 4), 7e5, np.float32)).save(tmp_path / "range.tiff")
    images = ["good.png", "junk.png", "moving.gif", "range.tiff", "gone.png", "../out.png"]
    write_lines(
        tmp_path / "pairs.jsonl", *[{"prompt": "x", "image": name} for name in images], {"image": "good.png"}, "no"
    )
    pairs = PairSet(tmp_path, PairFields())
    expected = []
    for row in read_all(pairs):
        bad = row[1] if isinstance(row, tuple) else pairs.images([row], (4, 4))[0]
        expected.append((bad.reason, str(bad)) if isinstance(bad, BadRow) else None)
    looked = [(one.reason, one.message) if isinstance(one, Failure) else None for one in look_at(pairs, 100)]
    assert looked == expected
    assert sum(one is None for one in looked) == 1


def test_size_and_kind_are_those_of_the_upright_picture_and_of_its_file(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.new("RGB", (30, 20), "red")
    picture.save(tmp_path / "0.jpg", exif=turned)
    picture.convert("CMYK").save(tmp_path / "1.jpg")
    picture.convert("L").save(tmp_path / "2.png")
    picture.convert("RGBA").save(tmp_path / "3.png")
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(tmp_path / "4.png")
    palette, stream = picture.quantize(4), io.BytesIO()
    palette.save(stream, "GIF", transparency=0)
    (tmp_path / "5.gif").write_bytes(stream.getvalue())
    seen = [one for one in look_at(PairSet(tmp_path, PairFields(prompt="x")), 10) if isinstance(one, SeenRow)]
    assert [(one.width, one.height) for one in seen] == [(20, 30), *[(30, 20)] * 5]
    assert [(one.kind, one.mode) for one in seen] == [
        ("JPEG", "colour"),
        ("JPEG", "CMYK"),
        ("PNG", "grey"),
        ("PNG", "with transparency"),
        ("PNG", "grey of 16 bits"),
        ("GIF", "with transparency"),
    ]
