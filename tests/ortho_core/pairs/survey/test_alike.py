"""Copies are found whatever their files are; what only looks like something else is not a copy."""

import numpy as np
import pytest
from PIL import Image

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from ortho_core.pairs.survey.alike import identical, nearly_alike, prompts_of
from ortho_core.pairs.survey.sample import look_at
from tests.conftest import ROOT


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC)


@pytest.fixture
def seen(tmp_path):
    for seed in range(4):
        picture(seed).save(tmp_path / f"{seed}.png")
    picture(1).save(tmp_path / "1_again.bmp")
    picture(2).save(tmp_path / "2_worse.jpg", quality=40)
    picture(2).resize((101, 76)).save(tmp_path / "2_smaller.png")
    for shade in (10, 11):
        Image.new("L", (9, 9), shade).save(tmp_path / f"plain_{shade}.png")
    return list(look_at(PairSet(tmp_path, PairFields(prompt="x")), 100))


def names(groups):
    return [sorted(one.pair.image for one in group) for group in groups]


def test_the_same_pixels_in_another_file_are_identical_and_another_quality_or_size_is_nearly_alike(seen):
    assert names(identical(seen)) == [["1.png", "1_again.bmp"]]
    assert names(nearly_alike(seen)) == [["2.png", "2_smaller.png", "2_worse.jpg"]]
    assert nearly_alike(seen, 1) == []
    assert prompts_of(seen) == ["x"]


def test_handwritten_digits_of_one_class_and_colour_are_no_copies():
    digits = list(look_at(PairSet(ROOT / "examples" / "digits"), 1_000))
    assert identical(digits) == nearly_alike(digits) == []
