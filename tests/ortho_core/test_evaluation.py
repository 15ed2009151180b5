import numpy as np
import pytest
import torch
from scipy import linalg

from ortho_core.assign import AssignConfig
from ortho_core.decoding import to_images
from ortho_core.evaluation import HeldOut, drift, evaluate, frechet_distance, mean_pairwise_distance, sample
from ortho_core.noise import noise_seed
from ortho_core.pairs import PairSet
from ortho_core.prompts import PromptCache


def test_frechet_distance_is_that_of_the_matrix_square_root():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8))
    fake = rng.normal(size=(150, 8)) @ rng.normal(size=(8, 8)) + 1
    a, b = np.cov(real.T), np.cov(fake.T)
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(real, fake, components=8) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(real, real, components=8) == pytest.approx(0, abs=1e-8)


def test_pairwise_distance_is_that_of_every_pair():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = images.double().numpy() / 255
    pairs = [np.sqrt(((x[i] - x[j]) ** 2).mean()) for i in range(5) for j in range(i)]
    assert mean_pairwise_distance(images) == pytest.approx(np.mean(pairs))


def test_samples_do_not_depend_on_the_batch(generator):
    texts = ["a red handwritten three on a white background", "a blue handwritten one on a black background"] * 3
    seeds = [noise_seed(0, i) for i in range(6)]
    cache = PromptCache(generator)
    apart = sample(generator, cache, texts, seeds, 1).int()
    assert (apart - sample(generator, cache, texts, seeds, 4).int()).abs().max() <= 1


def test_a_model_judged_against_itself_has_no_drift(generator, digits):
    pairs = PairSet(digits / "heldout.jsonl")
    rows = list(pairs.read(pairs.shards(12)[0]))
    images = to_images(pairs.images(rows, generator.image_size))
    heldout = HeldOut([r.sample_id for r in rows], [r.prompt for r in rows], images)
    base, again = (evaluate(generator, heldout, AssignConfig(steps=4), seed=0, batch_size=8) for _ in range(2))
    assert drift(again.samples, base.samples) == {"mean": 0, "standard_error": 0}
    assert again.metrics["latent_mse"] == base.metrics["latent_mse"]
    difference = (base.closest.double() / 255 - images) ** 2
    psnr = (-10 * difference.flatten(1).mean(1).log10()).mean().item()
    assert base.metrics["psnr"]["mean"] == pytest.approx(psnr, abs=0.1)


def test_drift_is_the_rms_pixel_distance():
    base = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    moved = base.clone()
    moved[0], moved[1, 0] = 51, 255
    expected = [0.2, np.sqrt(1 / 3), 0.0]
    found = drift(moved, base)
    assert found["mean"] == pytest.approx(np.mean(expected))
    assert found["standard_error"] == pytest.approx(np.std(expected, ddof=1) / np.sqrt(3))
