import pytest

from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.pairs.survey.framed import Taken
from rayjobs.reports.framed import line_of, line_of_one

THREE = Framing(((24, 40), (32, 32), (40, 24)), most_lost=0.34)


@pytest.mark.parametrize(
    ("framing", "pictures", "said"),
    [
        (Framing.at((32, 32)), [(64, 64)], ""),
        (
            Framing.at((32, 32)),
            [(64, 64), (60, 100)],
            "the crop cuts off 20% of a picture on average, 40% at most to 32x32; --buckets auto cuts off less",
        ),
        (Framing.at((32, 32)), [(20, 20), (64, 64)], "1 picture is smaller and is enlarged, up to 1.6 times"),
        (
            THREE,
            [(64, 64), (60, 100), (100, 10)],
            "3 sizes of about 32x32 pixels (40x24 1, 32x32 1); 1 picture would lose more than 34% and cannot be used "
            "(--max-crop)",
        ),
        (
            Framing(THREE.sizes, "none"),
            [(100, 100), (100, 120)],
            "3 sizes of about 32x32 pixels (32x32 2); stretching changes the shape by 8% of a picture on average, 17% at most; "
            "one square would cut off 8%",
        ),
    ],
)
def test_the_line_has_what_happens_to_the_pictures(framing, pictures, said):
    line = line_of(Taken.of(framing, pictures), framing)
    counted = f"images, {len(pictures)} picture{'s' * (len(pictures) > 1)} looked at: "
    assert line == (said and counted + said)


def test_the_line_of_one_picture():
    assert line_of_one(Frame(200, 300, 0, 8, 32, 32)) == (
        "has 300×200 pixels: the crop to 32x32 cuts off 33% of it (--size for another shape)"
    )
    assert line_of_one(Frame(16, 16, 0, 0, 32, 32)) == "has 16×16 pixels: it is enlarged 2.0 times"
    assert line_of_one(Frame(64, 64, 0, 0, 32, 32)) == ""
