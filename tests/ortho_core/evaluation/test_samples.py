"""What is computed of images in whole grey levels, against scipy and sums written out."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import ndimage

from ortho_core.evaluation.samples import (
    from_png,
    laplacian_energy,
    mean_pairwise_distance,
    rms_distance,
    sample,
    to_png,
)
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.noise.seeded import noise_seed
from tests.ortho_core.evaluation.judges import TEXTS, pictures


def test_pairwise_distance_is_that_of_every_pair():
    images = pictures(5, 4)
    x = images.double().numpy() / 255
    pairs = [np.sqrt(((x[i] - x[j]) ** 2).mean()) for i in range(5) for j in range(i)]
    assert mean_pairwise_distance(images) == pytest.approx(np.mean(pairs))


def test_drift_is_the_rms_pixel_distance():
    base = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    moved = base.clone()
    moved[0], moved[1, 0] = 51, 255
    assert rms_distance(moved, base) == pytest.approx([0.2, np.sqrt(1 / 3), 0.0])


def test_laplacian_energy_is_that_of_scipys_laplacian_away_from_the_edge():
    for image in pictures(3, 12):
        luma = np.tensordot([0.299, 0.587, 0.114], image.numpy() / 255, 1)
        expected = (ndimage.laplace(luma)[1:-1, 1:-1] ** 2).mean()
        assert laplacian_energy(image) == pytest.approx(expected, rel=1e-9)
    assert laplacian_energy(pictures(1, 12)[0, :, :7]) > 0  # not square


def test_blur_lowers_the_laplacian_energy_and_flat_images_have_none(digits):
    with Image.open(next(iter(sorted((digits / "images").iterdir())))) as picture:
        sharp = picture.convert("RGB")
    copies = [sharp, *(sharp.filter(ImageFilter.GaussianBlur(radius)) for radius in (0.5, 1, 2))]
    energies = [laplacian_energy(torch.from_numpy(np.array(copy)).permute(2, 0, 1)) for copy in copies]
    assert energies == sorted(energies, reverse=True)
    assert energies[2] < 0.2 * energies[0]
    flat = torch.tensor([17, 91, 203], dtype=torch.uint8)[:, None, None].expand(3, 9, 9)
    rising = flat // 2 + 3 * torch.arange(9, dtype=torch.uint8)
    assert [laplacian_energy(image) for image in (flat, rising)] == [0, 0]
    assert np.isnan(laplacian_energy(flat[..., :2]))  # no inner pixels


def test_pictures_survive_being_kept():
    image = pictures(1)[0]
    assert torch.equal(from_png(to_png(image)), image)


def test_samples_do_not_depend_on_the_batch(generator):
    cache, seeds = PromptCache(generator), [noise_seed(0, i) for i in range(6)]
    apart = sample(generator, cache, TEXTS * 3, seeds, 1).int()
    assert (apart - sample(generator, cache, TEXTS * 3, seeds, 4).int()).abs().max() <= 1
