import json

import pytest

from ortho_core.pairs.pair_set import PairSet
from tests.ortho_core.pairs.made import outcomes, png, read_all, write_images, write_lines


def test_every_bad_row_has_its_reason_and_the_good_ones_survive(tmp_path):
    folder = tmp_path / "p"
    write_images(tmp_path, "p/a.png", "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.png").mkdir()
    (folder / "empty.png").touch()
    image = {"image": "a.png"}
    write_lines(
        folder / "pairs.jsonl",
        b"\xef\xbb\xbf" + json.dumps({"prompt": "after a byte-order mark", **image}).encode(),
        image,
        {"prompt": 7, **image},
        {"prompt": "  ", **image},
        {"prompt": "x"},
        {"prompt": "x", "image": ["a.png"]},
        {"prompt": "x", "image": "b.png"},
        {"prompt": "x", "image": "a.png/b.png"},
        {"prompt": "x", "image": "folder.png"},
        {"prompt": "x", "image": "loop.png"},
        {"prompt": "x", "image": "a\0.png"},
        {"prompt": "x", "image": "a" * 300 + ".png"},
        {"prompt": "x", "image": "../secret.png"},
        {"prompt": "x", "image": str(tmp_path / "secret.png")},
        {"prompt": "x", "image": "link.png"},
        {"prompt": "x", "image": "s3://elsewhere/a.png"},
        {"prompt": "x", "image": "empty.png"},
        '{"prompt": "x", "image"',
        "[1, 2]",
        "[" * 100_000,
        b'{"prompt": "\xff", "image": "a.png"}',
        '{"prompt": "caf\\ud83d", "image": "a.png"}',
        {"prompt": "inside after all", "image": "folder.png/../a.png"},
        {"prompt": "absolute, but inside", "image": str(folder / "a.png")},
        {"prompt": "the last one", **image},
    )
    assert outcomes(folder) == [
        "000000_a",
        *["missing-prompt"] * 3,
        *["missing-image"] * 8,
        *["outside-root"] * 4,
        "undecodable-image",
        *["not-json"] * 4,
        "not-text",
        *["000022_a", "000023_a", "000024_a"],
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_do_not_count_and_the_last_line_needs_no_end(tmp_path, end):
    rows = [json.dumps({"prompt": f"prompt {i}", "image": "a.png"}).encode() for i in range(23)]
    lines = [line for i, row in enumerate(rows) for line in (row, b"" if i % 5 else b"   ")][:-1]
    (tmp_path / "pairs.jsonl").write_bytes(end.join([b"", *lines]))
    pairs = PairSet(tmp_path)
    assert pairs.rows() == 23
    for size in (1, 4, 22, 23, 100):
        assert [row.prompt for row in read_all(pairs, size)] == [f"prompt {i}" for i in range(23)]


def test_the_imagefolder_layout_has_its_own_field_names(tmp_path):
    write_images(tmp_path, "train/a.png")
    write_lines(tmp_path / "metadata.jsonl", {"text": "x", "file_name": "train/a.png"})
    assert outcomes(tmp_path) == ["000000_a"]


def test_field_names_can_be_chosen(tmp_path):
    write_images(tmp_path, "a.png")
    write_lines(tmp_path / "pairs.jsonl", {"prompt": "x", "words": "y", "image": "b.png", "photo": "a.png", "key": "k"})
    chosen = {"prompt_field": "words", "image_field": "photo"}
    assert outcomes(tmp_path) == ["missing-image"]
    assert outcomes(tmp_path, **chosen) == ["000000_a"]
    assert outcomes(tmp_path, **chosen, id_field="key") == ["k"]


def test_images_can_lie_under_another_root(tmp_path):
    write_images(tmp_path, "elsewhere/a.png", "secret.png")
    names = ("a.png", str(tmp_path / "elsewhere" / "a.png"), "../secret.png")
    write_lines(tmp_path / "p" / "pairs.jsonl", *[{"prompt": "x", "image": name} for name in names])
    assert outcomes(tmp_path / "p") == ["missing-image", "outside-root", "outside-root"]
    assert outcomes(tmp_path / "p", image_root=str(tmp_path / "elsewhere")) == ["000000_a", "000001_a", "outside-root"]


def test_urls_of_the_own_bucket_are_inside(s3, tmp_path):
    from ortho_core.storage.open import open_store

    store = open_store(s3() + "/set")
    open_store(store.location + "-2").replace("b.png", png())
    store.replace("images/a.png", png())
    names = ("images/a.png", "images/b.png", "../set-2/b.png", "/set/images/a.png")
    urls = ("/images/a.png", "-2/b.png", "/../set-2/b.png")
    rows = [{"prompt": "x", "image": image} for image in (*names, *[store.location + url for url in urls])]
    store.replace("pairs.jsonl", write_lines(tmp_path / "pairs.jsonl", *rows).read_bytes())
    outside = "outside-root"
    assert outcomes(store.location) == ["000000_a", "missing-image", outside, outside, "000004_a", outside, outside]
