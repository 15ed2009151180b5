"""The figures of a validation against the same written out."""

import numpy as np
import pytest
import torch

from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.losses import mean_square
from ortho_core.mstep.teacher import FrozenTeacher
from ortho_core.mstep.validation import Validation, figures
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes
from ortho_core.records.assignments import Assignments


@pytest.fixture
def moved(tiny_turbo):
    """A model that is no longer what it was."""
    loaded = load_generator(ModelFolder.open(tiny_turbo))
    with torch.no_grad():
        loaded.trainable.conv_out.bias += 0.1
    return loaded


def validation(assigned, generator, teacher=None, rows=range(3, 15), batch_size=16):
    return Validation.of(Assignments(assigned[1]), rows, generator, teacher, PromptCache(generator), batch_size)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 16])
def test_figures_are_the_means_that_they_say(assigned, generator, moved, batch_size):
    made = validation(assigned, generator, batch_size=batch_size)
    table, samples = made.measure(moved, PromptCache(moved))
    held, index = Assignments(assigned[1]), list(range(3, 15))
    rows = held.rows(index, ["sample_id", "prompt"])
    fresh = generator.base_noise([noise_seed(0, "validation", row["sample_id"]) for row in rows])
    prompts = [row["prompt"] for row in rows]
    with torch.no_grad():
        before = generator.denoise(fresh, generator.encode_prompts(prompts))
        condition = moved.encode_prompts(prompts)
        now = moved.denoise(fresh, condition)
        error = mean_square(moved.denoise(held.noise(index, (4, 8, 8)), condition), held.targets(index, (4, 8, 8)))
    expected = torch.stack([error, mean_square(now, before)], 1).numpy()
    np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(samples, now, rtol=1e-4, atol=1e-4)
    assert figures([table]) == pytest.approx(dict(zip(("latent", "drift"), expected.mean(0), strict=True)), rel=1e-4)
    assert figures([table]) == pytest.approx(figures([table[:6], table[6:]]))


def test_the_center_is_taken_off_the_matched_noise_alone(assigned, generator):
    center = np.full((4, 8, 8), 0.25, np.float32)
    prompts = PromptCache(generator)
    moved = Validation.of(Assignments(assigned[1]), range(3, 15), generator, None, prompts, 16, center)
    plain = validation(assigned, generator)
    torch.testing.assert_close(plain.matched - moved.matched, torch.full_like(plain.matched, 0.25))
    torch.testing.assert_close(plain.random, moved.random)


def test_drift_is_counted_from_the_teacher_where_there_is_one(assigned, generator, moved):
    taught = validation(assigned, moved, FrozenTeacher(generator.trainable))
    alone = validation(assigned, moved)
    plain = validation(assigned, generator)
    torch.testing.assert_close(taught.before, plain.before, rtol=1e-4, atol=1e-5)
    assert alone.measure(moved, PromptCache(moved))[0][:, 1].max() < 1e-9
    assert taught.measure(moved, PromptCache(moved))[0][:, 1].min() > 1e-3


@pytest.mark.parametrize("batch_size", [3, 16])
def test_the_picture_is_of_the_first_rows_and_has_no_more_than_there_are(assigned, generator, batch_size):
    for rows, shown in ((range(12), 8), (range(5), 5)):
        made = validation(assigned, generator, rows=rows, batch_size=batch_size)
        prompts = PromptCache(generator)
        _, samples = made.measure(generator, prompts)
        targets, matched, before, now = made.picture(generator, prompts, samples)
        assert {part.shape for part in (targets, matched, before, now)} == {(shown, 3, 32, 32)}
        assert torch.equal(targets, to_bytes(generator.decode(made.targets[:shown])))
        assert torch.equal(before, now)
        assert not torch.equal(before, matched)
