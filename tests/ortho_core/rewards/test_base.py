"""Preprocessing against the packages' own, and the reading of weights."""

import numpy as np
import pytest
import torch
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from ortho_core.errors import UserError
from ortho_core.rewards.base import CLIP_MEAN, CLIP_STD, Preprocessing, load_weights, read_weights
from tests.ortho_core.rewards.conftest import pictures, tensors

SIZES = [(224, 224), (512, 512), (100, 100), (300, 401), (401, 299), (97, 60)]
LEVEL = 1 / 255 / min(CLIP_STD)  # one grey level, normalised


def of_pil(size: int) -> Compose:
    """What openai's CLIP, its aesthetic predictor and ImageReward do with a picture."""
    return Compose(
        [Resize(size, InterpolationMode.BICUBIC), CenterCrop(size), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)]
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [224, 56])
def test_it_agrees_with_pils_to_a_level_and_a_half(size, pixels):
    images = pictures(size)
    expected = torch.stack([of_pil(pixels)(image) for image in images])
    found = Preprocessing(pixels)(tensors(images))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1.5 * LEVEL
    assert (found - expected).abs().mean() <= 0.35 * LEVEL


@pytest.mark.parametrize("size", SIZES)
def test_it_agrees_with_the_image_processor_of_transformers(size):
    from transformers import CLIPImageProcessor

    images = pictures(size)
    processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56)
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    found = Preprocessing(56, crop_to_even=False)(tensors(images))
    assert (found - expected).abs().max() <= 1.5 * LEVEL
    assert (found - expected).abs().mean() <= 0.35 * LEVEL


def test_a_picture_of_the_right_size_is_normalised_alone():
    images = pictures((56, 56))
    expected = torch.stack([of_pil(56)(image) for image in images])
    torch.testing.assert_close(Preprocessing(56)(tensors(images)), expected, rtol=0, atol=1e-6)


def test_padding_keeps_all_of_the_picture_between_black_bars():
    images = torch.ones(1, 3, 40, 80)
    found = Preprocessing(20, mean=(0.0,) * 3, std=(1.0,) * 3, fit="pad")(images)[0, 0]
    assert found.shape == (20, 20)
    np.testing.assert_allclose(found.mean(1), [0.0] * 5 + [1.0] * 10 + [0.0] * 5, atol=1e-6)


def test_values_outside_get_no_gradient_and_those_inside_all_of_theirs():
    images = torch.tensor([-0.2, 0.01, 0.3, 0.99, 1.3]).expand(1, 3, 5, 5).clone().requires_grad_()
    Preprocessing(5)(images).sum().backward()
    per_value = images.grad[0, 0, 0] * CLIP_STD[0]
    torch.testing.assert_close(per_value, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))


def test_half_precision_images_are_resized_in_float32():
    images = tensors(pictures((60, 60)))
    assert Preprocessing(56)(images.bfloat16()).dtype == torch.float32
    assert Preprocessing(56)(images.double()).dtype == torch.float64


def test_weights_that_do_not_fit_are_told_in_one_line(tmp_path):
    model, file = torch.nn.Linear(2, 3), tmp_path / "w.pt"
    with pytest.raises(
        UserError, match=r"reward r: .*w\.pt does not fit the model: no weight; .*extra.*; bias of shape"
    ):
        load_weights(model, {"bias": torch.zeros(4), "extra": torch.zeros(1)}, file, "r")


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_told_in_one_line(tmp_path, content):
    file = tmp_path / "w.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"reward r: .*w\.pt is not a file of PyTorch weights") as caught:
        read_weights(file, "r")
    assert "\n" not in str(caught.value)
