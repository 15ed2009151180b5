import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from ortho_core.errors import BadRow
from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing, auto_sizes, lost

FIVE = auto_sizes(48, 8)


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (512, 32), (512, 64), (48, 8), (500, 32), (768, 64)])
def test_automatic_sizes_have_about_one_area_and_every_shape_up_to_the_limit(resolution, step):
    sizes, square = auto_sizes(resolution, step), resolution // step * step
    assert (square, square) in sizes
    assert {(X, Y) for Y, X in sizes} == set(sizes)
    for Y, X in sizes:
        assert Y % step == X % step == 0
        assert 0.75 * square**2 <= Y * X <= resolution**2
        assert max(Y / X, X / Y) <= 2
        # No longer size of this shorter side is within the limits; the square may have a little more beside it.
        longer = max(Y, X) + step
        assert Y == X or longer * min(Y, X) > resolution**2 or longer > 2 * min(Y, X)
    shapes = [Y / X for Y, X in sizes]
    assert shapes == sorted(shapes, reverse=True)
    assert max(a / b for a, b in itertools.pairwise(shapes)) < 1.5
    assert not auto_sizes(7, 8)


def test_those_of_sdxl_are_the_usual_ones():
    upright = [f"{X}x{Y}" for Y, X in auto_sizes(1024, 64)[:6]]
    assert upright == ["704x1408", "768x1344", "832x1216", "896x1152", "960x1088", "1024x1024"]
    assert Framing(auto_sizes(1024, 64)).main == (1024, 1024)
    assert Framing(((24, 40), (40, 24))).main in ((24, 40), (40, 24))


def test_a_picture_goes_to_the_size_that_cuts_off_least():
    framing = Framing(FIVE)
    drawn = np.random.default_rng(0)
    for width, height in drawn.integers(20, 400, (200, 2)).tolist():
        best = min(lost(width, height, size) for size in FIVE)
        assert lost(width, height, framing.nearest(width, height)) == pytest.approx(best)
    # Of one shape, the largest that needs no enlargement; else the smallest.
    areas = Framing(((32, 32), (64, 64), (128, 128), (32, 64)))
    assert [areas.nearest(side, side) for side in (20, 32, 100, 500)] == [(32, 32), (32, 32), (64, 64), (128, 128)]


@pytest.mark.parametrize("shape", [(80, 40), (40, 80), (61, 53), (48, 48), (300, 200), (30, 30)])
def test_the_frame_is_that_of_the_picture_scaled_and_cropped_by_hand(shape):
    width, height = shape
    y, x = np.mgrid[:height, :width]
    waves = 127 + 120 * np.sin(np.stack([x / 9, y / 7, (x + y) / 11], 2))
    picture = Image.fromarray(waves.astype(np.uint8))
    pixels, frame = Framing(FIVE).cut(picture)
    Y, X = frame.size
    assert frame[:2] == (height, width)
    assert pixels.shape == (Y, X, 3)
    np.testing.assert_array_equal(pixels, np.asarray(ImageOps.fit(picture, (X, Y), Image.Resampling.LANCZOS)))
    scale = max(X / width, Y / height)
    scaled = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    by_hand = np.asarray(scaled)[frame.top : frame.top + Y, frame.left : frame.left + X]
    # The corner is rounded to whole pixels, and a wave moves by 17 grey levels in a pixel at most.
    Y, X = (min(sides) for sides in zip(by_hand.shape[:2], frame.size, strict=True))
    assert np.abs(by_hand[:Y, :X].astype(float) - pixels[:Y, :X]).mean() < 10
    Y, X = frame.size
    assert frame.top == round((height * scale - Y) / 2)
    assert frame.left == round((width * scale - X) / 2)
    assert frame.enlarged == pytest.approx(scale)


def test_a_random_crop_is_the_row_s_and_the_seed_s_and_inside_the_picture():
    framing, other = Framing(FIVE, "random", seed=1), Framing(FIVE, "random", seed=2)
    frames = [framing.frame(300, 200, f"row {k}") for k in range(200)]
    assert frames == [framing.frame(300, 200, f"row {k}") for k in range(200)]
    assert frames != [other.frame(300, 200, f"row {k}") for k in range(200)]
    Y, X = frames[0].size
    scale = max(X / 300, Y / 200)
    room = max(300 * scale - X, 200 * scale - Y)
    corners = {max(frame.top, frame.left) for frame in frames}
    assert min(corners) == 0
    assert max(corners) == pytest.approx(room, abs=1)
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (40, 1))).convert("RGB")
    wide = Framing(((40, 100),), "random")
    for key in ("a", "b", "c"):
        pixels, frame = wide.cut(ramp, key)
        assert abs(float(pixels[0, 0, 0]) - frame.left) <= 1


def test_without_a_crop_the_picture_is_stretched():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (53, 61, 3), dtype=np.uint8))
    pixels, frame = Framing(FIVE, "none").cut(picture)
    Y, X = frame.size
    np.testing.assert_array_equal(pixels, np.asarray(picture.resize((X, Y), Image.Resampling.LANCZOS)))
    assert frame == Frame(53, 61, 0, 0, Y, X)


def test_a_picture_that_would_lose_too_much_is_not_used():
    framing = Framing(FIVE, most_lost=0.34)
    assert framing.frame(300, 100).size == (32, 64)
    with pytest.raises(BadRow) as told:
        framing.frame(400, 100, name="row 3: long.png")
    assert told.value.reason == "too-extreme"
    assert str(told.value) == (
        "row 3: long.png is 400×100, and the nearest size, 64×32, would cut off 50% of it; accepted: 34% (--max-crop raises the "
        "limit, --buckets adds sizes)"
    )
    assert Framing(FIVE).frame(4000, 10).size == (32, 64)


def test_a_model_is_told_the_frame_or_that_of_a_picture_of_its_size():
    frame = Framing(FIVE).frame(300, 200)
    assert Framing(FIVE, tells_frames=True).told(frame) == frame
    assert Framing(FIVE).told(frame) == Frame.plain(frame.size) == (*frame.size, 0, 0, *frame.size)


@pytest.mark.parametrize(
    "framing",
    [
        Framing.at((48, 48)),
        Framing.at((24, 40)),
        Framing(FIVE, "random", 0.5, True, 7),
        Framing(((24, 40),), "random", seed=7),
    ],
)
def test_a_plan_has_the_framing(framing):
    content = framing.settings((48, 48))
    assert Framing.of_settings(content, (48, 48), framing.seed) == framing
    assert ("sizes" in content) == (len(framing.sizes) > 1)
    with pytest.raises(ValueError, match="crop is 'left'"):
        Framing.of_settings({"crop": "left"}, (48, 48), 0)


def test_one_plain_size_is_recorded_as_before():
    assert Framing.at((48, 48)).settings((48, 48)) == {"size": None}
    assert Framing.at((24, 40)).settings((48, 48)) == {"size": "40x24"}
    assert math.isclose(lost(300, 200, (1, 1)), 1 / 3)
