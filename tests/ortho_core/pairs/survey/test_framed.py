import pytest
from PIL import Image

from ortho_core.framing.framing import Framing, auto_sizes
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.survey.framed import Taken, some_sizes
from tests.ortho_core.pairs.made import write_images, write_lines


def test_what_is_taken_is_counted_by_hand():
    framing = Framing(((32, 32), (24, 40)), most_lost=0.34)
    pictures = [(100, 100), (60, 100), (100, 150), (20, 20), (10, 100)]
    taken = Taken.of(framing, pictures)
    assert taken.pictures == 5
    assert taken.too_extreme == 1
    assert taken.enlarged == 1
    assert taken.most_enlarged == pytest.approx(32 / 20)
    assert taken.sizes == {"32x32": 2, "40x24": 2}
    assert taken.most_lost == pytest.approx(1 - 1.5 / (40 / 24))
    assert taken.mean_lost == pytest.approx(taken.most_lost / 4)
    assert taken.square_lost == pytest.approx((0 + 0.4 + 1 / 3 + 0 + 0.9) / 5)


def test_only_headers_are_read_upright_and_broken_files_are_left_out(tmp_path):
    write_images(tmp_path, "a.png", "b.png", "c.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg", exif=exif)
    (tmp_path / "c.png").write_bytes(b"no picture")
    names = ("a.png", "b.jpg", "c.png", "missing.png")
    write_lines(tmp_path / "pairs.jsonl", *({"prompt": "x", "image": name} for name in names))
    assert some_sizes(PairSet(tmp_path)) == [(20, 30), (30, 20)]
    assert some_sizes(PairSet(tmp_path), most=1) == [(20, 30)]


@pytest.mark.parametrize(("resolution", "step"), [(512, 32), (512, 64), (1024, 64)])
def test_automatic_sizes_lose_at_most_a_quarter_of_what_a_square_does(resolution, step):
    pictures = [(1000, int(1000 * 2 ** (k / 50 - 1))) for k in range(101)]
    taken = Taken.of(Framing(auto_sizes(resolution, step), most_lost=0.34), pictures)
    assert taken.too_extreme == 0
    assert taken.mean_lost < taken.square_lost / 4
