import io
import json
import random
from collections import Counter
from functools import partial

import pytest
import torch
from PIL import Image

from ortho_core.framing.framing import Framing
from ortho_core.pairs.decoding import decode_in_threads, decoded_batches, to_images
from ortho_core.pairs.pair_set import PairSet
from tests.ortho_core.pairs.made import KINDS, png, write_images, write_lines, write_set

SIZE = Framing.at((4, 6))


def rows_and_batches(pairs, batch_size, rows_per_shard=1_000, **options):
    """Row numbers in order, sizes of batches, all images, and the reasons by row number."""
    rows, sizes, images, failures = [], [], [], []
    for shard in pairs.shards(rows_per_shard):
        for batch, pictures in decoded_batches(pairs, shard, batch_size, SIZE, failures, **options):
            rows += [pair.row for pair in batch]
            sizes.append(len(batch))
            images.append(pictures)
    return rows, sizes, torch.cat(images), {failure.row: failure.reason for failure in failures}


@pytest.fixture
def holes(tmp_path):
    """Sixty rows, of which a third do not parse or do not decode; row i is of shade i."""
    write_images(tmp_path, *[f"{i}.png" for i in range(60)])
    (tmp_path / "broken.png").write_bytes(b"x")
    lines = [{"prompt": f"prompt {i}", "image": f"{i}.png"} for i in range(60)]
    bad = random.Random(0).sample(range(60), 20)
    for i in bad:
        lines[i] = {"prompt": "x", "image": "broken.png"} if i % 2 else {"image": f"{i}.png"}
    write_lines(tmp_path / "pairs.jsonl", *lines)
    return PairSet(tmp_path), bad


@pytest.mark.parametrize("batch_size", [1, 7, 16, 40, 100])
def test_batches_are_full_whatever_rows_are_bad(holes, batch_size):
    pairs, bad = holes
    rows, sizes, images, reasons = rows_and_batches(pairs, batch_size)
    assert rows == [i for i in range(60) if i not in bad]
    assert sizes == [min(batch_size, 40 - at) for at in range(0, 40, batch_size)]
    assert (images[:, :, 0, 0] * 255).round().int().tolist() == [[i] * 3 for i in rows]
    assert reasons == {i: "undecodable-image" if i % 2 else "missing-prompt" for i in bad}


def test_only_some_rows_are_looked_at(holes):
    pairs, bad = holes
    rows, _, _, reasons = rows_and_batches(pairs, 8, only=range(10, 40))
    assert rows == [i for i in range(10, 40) if i not in bad]
    assert set(reasons) == {i for i in bad if 10 <= i < 40}


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(tmp_path, kind):
    pairs = PairSet(write_set(kind, tmp_path, [f"prompt {i}" if i % 5 else "" for i in range(90)]))
    one, two = (rows_and_batches(pairs, 8, 20, decode=partial(decode_in_threads, threads=n)) for n in (1, 2))
    assert one[0] == two[0] == [i for i in range(90) if i % 5]
    assert torch.equal(one[2], two[2])
    assert one[1::2] == two[1::2]


def test_images_are_planes_of_numbers_between_zero_and_one(holes):
    pairs, _ = holes
    (pixels,) = pairs.images(
        [next(row for row in pairs.read(pairs.shards(60)[0]) if not isinstance(row, tuple))], (4, 6)
    )
    pixels = pixels.copy()
    pixels[1, 2] = 0, 51, 255
    images = to_images([pixels, pixels])
    assert images.shape == (2, 3, 4, 6)
    assert images.is_contiguous()
    torch.testing.assert_close(images[1, :, 1, 2], torch.tensor([0.0, 0.2, 1.0]))


def test_who_stops_early_leaves_nothing_running(holes):
    pairs, _ = holes
    batches = decoded_batches(pairs, pairs.shards(60)[0], 4, SIZE, [])
    assert len(next(batches)[0]) == 4
    batches.close()


def encoded(picture, form="PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


#: Twenty kinds of rows: what a line holds, and the reason why it is bad (none: it is good).
BOM = b"\xef\xbb\xbf"
KINDS_OF_ROWS = {
    "good": ({"prompt": "x", "image": "good.png"}, None),
    "good in a folder": ({"prompt": "y", "image": "images/./good.png"}, None),
    "good JPEG, tags besides": ({"prompt": "z", "image": "good.jpg", "tags": [1]}, None),
    "byte-order mark": (BOM + json.dumps({"prompt": "x", "image": "good.png"}).encode(), None),
    "truncated": ({"prompt": "x", "image": "truncated.png"}, "undecodable-image"),
    "zero bytes": ({"prompt": "x", "image": "empty.png"}, "undecodable-image"),
    "wrong type": ({"prompt": "x", "image": "page.png"}, "undecodable-image"),
    "bomb": ({"prompt": "x", "image": "bomb.png"}, "too-large"),
    "animated": ({"prompt": "x", "image": "moving.gif"}, "animated"),
    "dots": ({"prompt": "x", "image": "../../etc/passwd"}, "outside-root"),
    "absolute": ({"prompt": "x", "image": "/etc/passwd"}, "outside-root"),
    "link out of the root": ({"prompt": "x", "image": "link.png"}, "outside-root"),
    "another bucket": ({"prompt": "x", "image": "s3://elsewhere/a.png"}, "outside-root"),
    "no such file": ({"prompt": "x", "image": "none.png"}, "missing-image"),
    "a folder": ({"prompt": "x", "image": "images"}, "missing-image"),
    "no image": ({"prompt": "x"}, "missing-image"),
    "no prompt": ({"image": "good.png"}, "missing-prompt"),
    "number as prompt": ({"prompt": 7, "image": "good.png"}, "missing-prompt"),
    "invalid UTF-8": (b'{"prompt": "\xff\xfe", "image": "good.png"}', "not-json"),
    "not JSON": (b"<html>", "not-json"),
}


def test_a_thousand_rows_of_every_kind_come_out_or_have_their_reason(tmp_path):
    root = tmp_path / "set"
    noise = Image.effect_noise((64, 64), 50)
    (root / "images").mkdir(parents=True)
    for name, content in {
        "good.png": png(7),
        "images/good.png": png(8),
        "good.jpg": encoded(noise, "JPEG"),
        "truncated.png": encoded(noise)[:2_000],
        "empty.png": b"",
        "page.png": b"<!DOCTYPE html><title>404</title>",
        "bomb.png": encoded(Image.new("1", (9_400, 9_000))),
        "moving.gif": encoded(
            Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 255)]
        ),
    }.items():
        (root / name).write_bytes(content)
    (tmp_path / "secret.png").write_bytes(png(9))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    names = [*KINDS_OF_ROWS, "good"] * 52
    random.Random(0).shuffle(names)
    write_lines(root / "pairs.jsonl", *[KINDS_OF_ROWS[name][0] for name in names])
    expected = {row: reason for row, name in enumerate(names) if (reason := KINDS_OF_ROWS[name][1])}

    pairs = PairSet(root)
    assert pairs.rows() == len(names) > 1_000
    rows, sizes, images, reasons = rows_and_batches(pairs, 16, 150)
    assert reasons == expected
    assert rows == [row for row in range(len(names)) if row not in expected]
    assert Counter(sizes)[16] >= len(rows) // 16 - len(pairs.shards(150))
    assert images.shape == (len(rows), 3, 4, 6)
    shades = {"good": 7, "byte-order mark": 7, "good in a folder": 8}
    for row, image in zip(rows, images, strict=True):
        if names[row] in shades:
            assert image.unique().tolist() == pytest.approx([shades[names[row]] / 255])
