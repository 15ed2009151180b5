"""What a row may cost: no pipe is opened, no huge file read, no more pixels decoded at once than there is room for."""

import io
import os
import socket
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ortho_core.errors import BadRow
from ortho_core.pairs import images
from ortho_core.pairs.formats.arrow import ArrowFiles
from ortho_core.pairs.formats.parquet import Parquet
from ortho_core.pairs.images import decode_image
from ortho_core.pairs.limits import MAX_PROMPT_LENGTH, Room
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from tests.ortho_core.pairs.made import png, write_images, write_lines, write_tar


def faults(folder, **fields):
    """The reason and message of each row that cannot be used."""
    pairs = PairSet(folder, PairFields(**fields))
    found = {}
    for row in pairs.read(pairs.shards(10)[0]):
        (outcome,) = [row[1]] if isinstance(row, tuple) else pairs.images([row], (8, 8))
        if isinstance(outcome, BadRow):
            found[row[0] if isinstance(row, tuple) else row.row] = outcome.reason, str(outcome)
    return found


def test_what_is_no_regular_file_is_quarantined_and_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)
    listener.bind("socket.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    write_images(tmp_path, "0.png")
    names = ["0.png", "pipe.png", "socket.png"]
    write_lines(tmp_path / "pairs.jsonl", *({"image": name, "prompt": "a"} for name in names))
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or real(path, *rest, **more))
    found = faults(tmp_path)
    listener.close()
    assert found == {
        1: ("not-a-file", "row 1: image 'pipe.png': it is a pipe, not a regular file"),
        2: ("not-a-file", "row 2: image 'socket.png': it is a socket, not a regular file"),
    }
    assert [path for path in opened if path.endswith("0.png")]
    assert not [path for path in opened if "pipe" in path or "socket" in path]


def test_a_device_is_not_opened(tmp_path):
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    write_lines(tmp_path / "set" / "pairs.jsonl", {"image": "zero.png", "prompt": "a"})
    (reason, message) = faults(tmp_path / "set", image_root="/dev")[0]
    assert (reason, "zero.png" in message) == ("missing-image", True)
    write_lines(tmp_path / "set" / "pairs.jsonl", {"image": "zero", "prompt": "a"})
    assert faults(tmp_path / "set", image_root="/dev")[0] == (
        "not-a-file",
        "row 0: image 'zero': it is a device, not a regular file",
    )


def test_an_image_file_of_too_many_bytes_is_not_read(tmp_path):
    write_images(tmp_path, "0.png")
    with (tmp_path / "1.png").open("wb") as sparse:
        sparse.truncate(2 << 30)
    write_lines(tmp_path / "pairs.jsonl", *({"image": f"{n}.png", "prompt": "a"} for n in range(2)))
    limit = "accepted: 268435456 (--max-image-bytes raises the limit)"
    assert faults(tmp_path) == {1: ("too-large", f"row 1: image '1.png' has 2147483648 bytes; {limit}")}
    assert {n: reason for n, (reason, _) in faults(tmp_path, max_image_bytes=20).items()} == {
        0: "too-large",
        1: "too-large",
    }


def test_images_inside_files_have_the_same_limit(tmp_path):
    write_tar(tmp_path / "tars" / "a.tar", {"0.png": png(), "0.txt": "a"})
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"prompt": ["a"], "image": [png()]}), tmp_path / "parquet" / "a.parquet")
    for kind in ("tars", "parquet"):
        assert faults(tmp_path / kind) == {}
        ((reason, message),) = faults(tmp_path / kind, max_image_bytes=20).values()
        assert reason == "too-large"
        assert f"has {len(png())} bytes; accepted: 20 (--max-image-bytes raises the limit)" in message


def test_an_image_of_too_many_pixels_names_the_option(tmp_path):
    write_images(tmp_path, "0.png")
    write_lines(tmp_path / "pairs.jsonl", {"image": "0.png", "prompt": "a"})
    ((reason, message),) = faults(tmp_path, max_image_pixels=3).values()
    assert reason == "too-large"
    assert message.endswith("exceeds 3 pixels (--max-image-pixels raises the limit)")


def test_a_prompt_of_too_many_characters_is_quarantined_with_its_limit(tmp_path):
    write_images(tmp_path, "0.png")
    rows = [{"image": "0.png", "prompt": "é" * n} for n in (MAX_PROMPT_LENGTH, MAX_PROMPT_LENGTH + 1)]
    write_lines(tmp_path / "pairs.jsonl", *rows)
    said = "row 1: the prompt has 20001 characters; accepted: 20000 (--max-prompt-length raises the limit)"
    assert faults(tmp_path) == {1: ("too-long-prompt", said)}
    assert faults(tmp_path, max_prompt_length=20_001) == {}


def test_no_more_pixels_are_decoded_at_once_than_there_is_room_for():
    room = Room(100)
    using, most, lock = [0], [0], threading.Lock()

    def work(pixels):
        with room.held() as hold:
            hold(pixels)
            with lock:
                using[0] += pixels
                most[0] = max(most[0], using[0])
            threading.Event().wait(0.002)
            with lock:
                using[0] -= pixels

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in [30, 60, 100, 1] * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most[0] <= 100
    assert (room.used, using[0]) == (0, 0)


def test_an_image_that_is_larger_than_the_room_is_decoded_alone_and_whoever_waits_comes_after(monkeypatch):
    room = Room(10)
    monkeypatch.setattr(images, "ROOM", room)
    assert decode_image(png(), (4, 4)).shape == (4, 4, 3)  # 8 × 8
    assert room.used == 0
    with pytest.raises(BadRow):
        decode_image(png()[:40], (4, 4))
    assert room.used == 0
    with room.held() as hold:
        for pixels in (500, 3):
            hold(pixels)
            assert room.used == pixels
    assert room.used == 0


def test_two_images_wait_for_each_other_where_there_is_room_for_one(monkeypatch):
    room = Room(10)
    monkeypatch.setattr(images, "ROOM", room)
    seen = []
    load = Image.Image.load

    def watched(image):
        seen.append(room.used)
        return load(image)

    monkeypatch.setattr(Image.Image, "load", watched)
    threads = [threading.Thread(target=decode_image, args=(png(), (4, 4))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    width, height = Image.open(io.BytesIO(png())).size
    assert seen
    assert max(seen) == width * height


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_ids_are_read_once_for_all_shards(tmp_path, monkeypatch, kind):
    rows = 5000
    table = pa.table({"prompt": ["a"] * rows, "image": ["x.png"] * rows, "key": [f"k{n % 4000}" for n in range(rows)]})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2500)
    else:
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2500)
    reader = Parquet if kind == "parquet" else ArrowFiles
    reads = []
    real = reader._read_column
    monkeypatch.setattr(reader, "_read_column", lambda self, *rest: reads.append(rest[:2]) or real(self, *rest))
    pairs = PairSet(tmp_path, PairFields(id_field="key"))
    shards = pairs.shards(10)
    assert (len(shards), len(reads)) == (500, 2)
    assert pairs.repeated.tolist() == list(range(4000, 5000))
