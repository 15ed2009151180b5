"""The E-step as one call, against the engine that it runs."""

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.estep.assign import assign_noise, checked_config
from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.engine import assign_encoded
from ortho_core.noise.seeded import seeded_normal
from ortho_core.noise.spaces import Rotations

CONFIG = AssignConfig(steps=4)
PROMPTS = ["a red three", "a blue five", "a green two"]


@pytest.fixture(scope="module")
def assigned(generator, batch):
    return assign_noise(generator, batch[1][:3], PROMPTS, CONFIG)


def test_it_finds_what_the_engine_finds(generator, batch, assigned):
    images = batch[1][:3]
    with torch.no_grad():
        condition, targets = generator.encode_prompts(PROMPTS), generator.encode_images(images)
    found = assign_encoded(generator, [0, 1, 2], condition, targets, None, CONFIG)
    torch.testing.assert_close(assigned.loss, torch.tensor([one.best("total") for one in found]), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        assigned.parameters, torch.stack([one.parameters for one in found]), rtol=1e-3, atol=1e-3
    )
    assert assigned.evaluations.tolist() == [one.evaluations for one in found]
    assert (assigned.loss < assigned.initial_loss).all()
    assert not assigned.failed.any()


def test_the_result_has_what_an_m_step_trains_on(generator, assigned):
    base = seeded_normal([0, 1, 2], generator.latent_shape)
    assert torch.equal(assigned.base_noise, base)
    rotated = Rotations(generator.latent_shape, 2).noise(base.double(), assigned.parameters.double())
    torch.testing.assert_close(assigned.noise, rotated.float(), rtol=0, atol=1e-6)
    with torch.no_grad():
        latents = generator.denoise(assigned.noise, generator.encode_prompts(PROMPTS))
    error = (latents - assigned.target_latents).square().flatten(1).mean(1)
    torch.testing.assert_close(error, assigned.terms["latent"], rtol=1e-3, atol=1e-5)


def test_a_search_goes_on_from_an_earlier_result(generator, batch, assigned):
    again = assign_noise(generator, batch[1][:3], PROMPTS, CONFIG, start=assigned)
    torch.testing.assert_close(again.initial_loss, assigned.loss, rtol=1e-3, atol=1e-5)
    assert again.seeds == assigned.seeds


def test_some_of_the_images_are_taken_by_number_slice_and_mask(assigned):
    for index, rows in ((1, [1]), (slice(0, 2), [0, 1]), ([2, 0], [2, 0]), (torch.tensor([True, False, True]), [0, 2])):
        taken = assigned[index]
        assert taken.prompts == [PROMPTS[row] for row in rows]
        assert torch.equal(taken.noise, assigned.noise[rows])
        assert torch.equal(taken.terms["latent"], assigned.terms["latent"][rows])
    assert [len(one) for one in assigned] == [1, 1, 1]
    assert repr(assigned).startswith("AssignedNoise(3 images, mean loss ")


def test_the_network_is_as_it_was(generator, batch):
    weight = next(generator.trainable.parameters())
    weight.requires_grad_(True)
    generator.trainable.train()
    try:
        assign_noise(generator, batch[1][:1], "a red three", AssignConfig(steps=1))
        assert weight.requires_grad
        assert generator.trainable.training
        assert weight.grad is None
    finally:
        generator.trainable.requires_grad_(False).eval()


def test_one_file_and_one_prompt_are_enough(generator, digits):
    one = assign_noise(generator, str(digits / "images/0000.png"), "a red three", AssignConfig(steps=1), seeds=7)
    assert (len(one), one.seeds) == (1, [7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ["a", "b"]}, "2 prompts for 1 images"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images"),
        ({"seeds": -1}, "seed -1: accepted"),
        ({"config": AssignConfig(patch_size=3)}, "patch_size 3 does not divide"),
        ({"images": []}, "no images: give at least one"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(generator, batch, options, message):
    usual = {"generator": generator, "images": batch[1][:1], "prompts": "a", "config": CONFIG}
    with pytest.raises(UserError, match=message):
        assign_noise(**{**usual, **options})


def test_a_configuration_of_another_kind_is_refused():
    assert checked_config(None, AssignConfig) == AssignConfig()
    assert checked_config(CONFIG, SearchConfig) is CONFIG
    with pytest.raises(UserError, match="config is of type SearchConfig: give AssignConfig"):
        checked_config(SearchConfig(), AssignConfig)


def test_a_start_of_another_search_is_refused(generator, batch, assigned):
    images = batch[1][:3]
    with pytest.raises(UserError, match="start has 120 parameters per image, this search has 2016"):
        assign_noise(generator, images, PROMPTS, AssignConfig(patch_size=4), start=assigned)
    with pytest.raises(UserError, match="give one of them"):
        assign_noise(generator, images, PROMPTS, CONFIG, start=assigned, seeds=[1, 2, 3])
    with pytest.raises(UserError, match="2 earlier results for 3 images"):
        assign_noise(generator, images, PROMPTS, CONFIG, start=assigned[:2])
