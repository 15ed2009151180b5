import dataclasses

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.estep.assign import assign_noise
from ortho_core.estep.config import AssignConfig
from ortho_core.generators.load import load_generator
from ortho_core.mstep.batches import matched_batches
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.update import MStep


@pytest.fixture(scope="module")
def assigned(generator, batch):
    return assign_noise(generator, batch[1], [f"a red {k}" for k in range(8)], AssignConfig(steps=1))


@pytest.fixture(scope="module")
def own(tiny_turbo):
    return load_generator(tiny_turbo)


def rows_of(batches, noise):
    return [[int((noise - row).abs().flatten(1).sum(1).argmin()) for row in one.noise] for one in batches]


def test_a_pass_takes_every_row_once_with_its_prompt_and_target(own, assigned):
    step = MStep(own, MStepConfig(pixel_l1_weight=1.0))
    batches = list(matched_batches(step, assigned, epochs=2, batch_size=4))
    centred = assigned.noise - assigned.noise.mean(0)
    rows = rows_of(batches, centred)
    assert [len(each) for each in rows] == [4] * 4
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(8))
    assert rows[:2] != rows[2:]
    for one, index in zip(batches, rows, strict=True):
        torch.testing.assert_close(one.noise, centred[index])
        assert torch.equal(one.target_latents, assigned.target_latents[index])
        assert torch.equal(one.images, assigned.images[index])
        with torch.no_grad():
            expected = own.encode_prompts([assigned.prompts[row] for row in index]).tensors
        for name, value in one.condition.tensors.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)
        assert len(one.preserve_noise) == len(one.preserve_condition) == 1
    again = matched_batches(step, assigned, epochs=2, batch_size=4)
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(batches, again, strict=True))


def test_preserve_rows_are_as_the_loss_needs_them(own, assigned):
    def first(config, **options):
        return next(matched_batches(MStep(own, config), assigned, batch_size=4, **options))

    assert first(MStepConfig(preserve_latent_weight=0)).preserve_noise is None
    assert first(MStepConfig()).images is None
    two = first(MStepConfig(preserve_differences=True))
    assert len(two.preserve_noise) == 2
    assert not torch.equal(two.preserve_noise[0], two.preserve_noise[1])
    assert all(torch.equal(value[0], value[1]) for value in two.preserve_condition.tensors.values())
    with pytest.raises(UserError, match="preserve_batch_size 3 is odd"):
        first(MStepConfig(preserve_differences=True), preserve_batch_size=3)


def test_failed_images_are_left_out(own, assigned):
    step = MStep(own, MStepConfig(preserve_latent_weight=0))
    some = dataclasses.replace(assigned, failed=torch.arange(8) < 5)
    (only,) = matched_batches(step, some, epochs=1, center_noise=False)
    assert sorted(rows_of([only], assigned.noise)[0]) == [5, 6, 7]
    with pytest.raises(UserError, match="the search failed for every image"):
        next(matched_batches(step, dataclasses.replace(assigned, failed=torch.ones(8, dtype=torch.bool))))
