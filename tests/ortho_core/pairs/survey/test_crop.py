"""What a centre crop keeps is what the decoder keeps."""

import io

import numpy as np
import pytest
from PIL import Image

from ortho_core.pairs.images import decode_image
from ortho_core.pairs.survey.crop import enlarged, framed, lost, shape


@pytest.mark.parametrize(("width", "height"), [(30, 20), (20, 50), (24, 24)])
def test_the_share_that_is_lost_is_that_of_the_decoders_crop(width, height):
    # Each pixel has its own value, so that those that come through are known.
    values = np.arange(width * height, dtype=np.uint16).reshape(height, width)
    stream = io.BytesIO()
    Image.fromarray(np.stack([values >> 8, values & 255, values * 0], -1).astype(np.uint8)).save(stream, "PNG")
    side = min(width, height)
    kept = decode_image(stream.getvalue(), (side, side)).astype(int)
    different = len(np.unique(kept[..., 0] * 256 + kept[..., 1]))
    assert lost(width, height) == pytest.approx(1 - different / (width * height))


def test_enlargement_and_shapes():
    assert enlarged(256, 1_000, 512) == 2
    assert enlarged(2_048, 1_024, 512) == 0.5
    sizes = [(512, 512), (1024, 683), (683, 1024), (1920, 1080), (640, 480), (3000, 1000), (100, 400)]
    shapes = ["1:1", "3:2", "2:3", "16:9", "4:3", "longer than 2:1", "longer than 1:2"]
    assert [shape(*size) for size in sizes] == shapes


def test_the_frame_stands_around_what_is_kept_and_the_rest_is_faded():
    drawn = framed(Image.new("RGB", (400, 200), (0, 100, 0)), 100)
    assert drawn.size == (100, 50)
    assert drawn.getpixel((50, 25)) == (0, 100, 0)
    assert min(drawn.getpixel((5, 25))) > 150
    assert drawn.getpixel((25, 25)) == drawn.getpixel((74, 25)) == (216, 27, 96)
