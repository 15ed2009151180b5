import json

import numpy as np
import pytest
import torch
from PIL import Image

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs import PairFields, PairSet, decode_image


def write_rows(folder, *lines: bytes | str | dict) -> PairSet:
    folder.mkdir(exist_ok=True)
    encoded = [
        json.dumps(x).encode() if isinstance(x, dict) else x.encode() if isinstance(x, str) else x for x in lines
    ]
    (folder / "pairs.jsonl").write_bytes(b"\n".join(encoded) + b"\n")
    return PairSet(folder)


def square(path, mode="RGB", size=(8, 8), colour=128, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def outcomes(pairs):
    (shard,) = pairs.shards(100)
    return [row[1].reason if isinstance(row, tuple) else row.sample_id for row in pairs.read(shard)]


def test_good_rows_are_named_by_row_and_stem(tmp_path):
    square(tmp_path / "p" / "images" / "0008.png")
    pairs = write_rows(
        tmp_path / "p", {"prompt": "x", "image": "images/0008.png"}, {"prompt": "y", "image": "images/0008.png"}
    )
    assert outcomes(pairs) == ["000000_0008", "000001_0008"]


def test_every_bad_row_has_its_reason_and_the_good_ones_survive(tmp_path):
    square(tmp_path / "p" / "a.png")
    square(tmp_path / "secret.png")
    (tmp_path / "p" / "link.png").symlink_to(tmp_path / "secret.png")
    image = {"image": "a.png"}
    pairs = write_rows(
        tmp_path / "p",
        b"\xef\xbb\xbf" + json.dumps({"prompt": "after a byte-order mark", **image}).encode(),
        image,
        {"prompt": 7, **image},
        {"prompt": "  ", **image},
        {"prompt": "x"},
        {"prompt": "x", "image": ["a.png"]},
        {"prompt": "x", "image": "b.png"},
        {"prompt": "x", "image": "../secret.png"},
        {"prompt": "x", "image": str(tmp_path / "secret.png")},
        {"prompt": "x", "image": "link.png"},
        {"prompt": "x", "image": "a\0.png"},
        '{"prompt": "x", "image"',
        "[1, 2]",
        b'{"prompt": "\xff", "image": "a.png"}',
        '{"prompt": "caf\\ud83d", "image": "a.png"}',
        {"prompt": "the last one", **image},
    )
    assert outcomes(pairs) == [
        "000000_a",
        *["missing-prompt"] * 3,
        *["missing-image"] * 3,
        *["outside-root"] * 3,
        "missing-image",
        *["not-json"] * 3,
        "not-text",
        "000015_a",
    ]


def test_shards_cover_every_row_once_whatever_their_size(tmp_path):
    square(tmp_path / "p" / "a.png")
    lines = [x for i in range(23) for x in ({"prompt": f"prompt {i}", "image": "a.png"}, "" if i % 5 else "   ")]
    pairs = write_rows(tmp_path / "p", *lines)
    for size in (1, 4, 23, 100):
        shards = pairs.shards(size)
        assert [s.index for s in shards] == list(range(len(shards)))
        rows = [row for shard in shards for row in pairs.read(shard)]
        assert [row.prompt for row in rows] == [f"prompt {i}" for i in range(23)]
        assert [row.row for row in rows] == list(range(23))


def test_field_names_can_be_chosen(tmp_path):
    square(tmp_path / "p" / "a.png")
    write_rows(tmp_path / "p", {"caption": "x", "file_name": "a.png"})
    pairs = PairSet(tmp_path / "p", PairFields(prompt_field="caption", image_field="file_name"))
    assert outcomes(pairs) == ["000000_a"]
    assert pairs.fingerprint() != PairSet(tmp_path / "p").fingerprint()


def test_a_row_can_bring_its_own_id(tmp_path):
    square(tmp_path / "p" / "a.png")
    rows = [{"prompt": "x", "image": "a.png", "key": key} for key in ("cat-1", 17, None, "", True, 1.5, "caf\ud83d")]
    write_rows(tmp_path / "p", *rows)
    pairs = PairSet(tmp_path / "p", PairFields(id_field="key"))
    assert outcomes(pairs) == ["cat-1", "17", *["missing-id"] * 4, "not-text"]


def test_a_missing_or_empty_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"pairs\.jsonl does not exist"):
        PairSet(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="holds no rows"):
        PairSet(tmp_path).shards(4)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (255, 0, 51), (1, 0, 0.2)),
        ("L", 51, (0.2, 0.2, 0.2)),
        ("RGBA", (255, 0, 0, 0), (1, 1, 1)),
        ("LA", (0, 255), (0, 0, 0)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (1, 1, 1)),
    ],
)
def test_colour_modes_come_out_as_rgb_with_alpha_over_white(tmp_path, mode, colour, expected):
    picture = decode_image(square(tmp_path / "x.png", mode, colour=colour), (4, 4))
    assert picture.shape == (3, 4, 4)
    torch.testing.assert_close(picture[:, 1, 2], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-3)


def test_sixteen_bit_grey_keeps_its_range_and_cmyk_its_colour(tmp_path):
    Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert decode_image(tmp_path / "deep.png", (4, 4)).mean().item() == pytest.approx(128 / 255, abs=2e-3)
    cyan = square(tmp_path / "cyan.jpg", "CMYK", colour=(255, 0, 0, 0))
    assert decode_image(cyan, (8, 8))[:, 4, 4].tolist() == pytest.approx([0, 1, 1], abs=0.02)


def test_exif_rotation_is_applied_and_the_centre_is_kept(tmp_path):
    picture = Image.new("RGB", (12, 4), "black")
    picture.paste("white", (0, 0, 2, 4))  # a white stripe at the left end
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: the left end becomes the top
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = decode_image(tmp_path / "turned.png", (12, 4))
    assert upright[:, 0].min() > 0.9
    assert upright[:, 4:].max() < 0.1
    assert decode_image(tmp_path / "turned.png", (4, 4)).max() < 0.1


def test_what_does_not_decode_is_a_bad_row(tmp_path):
    good = square(tmp_path / "good.png", size=(64, 64)).read_bytes()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    for name in ("empty", "text", "cut"):
        with pytest.raises(BadRow) as raised:
            decode_image(tmp_path / f"{name}.png", (8, 8))
        assert raised.value.reason == "undecodable-image"
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(BadRow, match="2 frames"):
        decode_image(tmp_path / "moving.gif", (8, 8))
    square(tmp_path / "bomb.png", "1", size=(9_400, 9_000), colour=0)
    with pytest.raises(BadRow) as raised:
        decode_image(tmp_path / "bomb.png", (8, 8))
    assert raised.value.reason == "too-large"
