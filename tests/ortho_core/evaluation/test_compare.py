import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.evaluation.compare import kid_between


def test_other_images_are_farther_than_the_same(batch):
    images = batch[1]
    same, other = kid_between(images, images), kid_between(1 - images, images)
    assert same.value < other.value
    assert other.low <= other.value <= other.high
    assert other.count == 8


def test_sets_that_cannot_be_compared_are_refused():
    for a, b in ((4, 4), (8, 9)):
        with pytest.raises(UserError, match=f"{a} images and {b} references: give equally many, 8 at least"):
            kid_between(torch.rand(a, 3, 32, 32), torch.rand(b, 3, 32, 32))
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        kid_between(torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32), "nowhere")
