import copy
from dataclasses import replace

import pytest
import torch

from ortho_core.mstep.config import SftConfig
from ortho_core.mstep.loss import TERMS, SftBatch, sft_loss
from ortho_core.mstep.teacher import FrozenTeacher, using


@pytest.fixture
def step(generator, batch):
    """A teacher equal to the start, a student moved away from it, and one batch."""
    condition, images, targets = batch
    teacher = FrozenTeacher.copy_of(generator.trainable)
    student = copy.deepcopy(generator.trainable).requires_grad_(True)
    with torch.no_grad():
        for i, parameter in enumerate(student.parameters()):
            stream = torch.Generator().manual_seed(i)
            parameter.add_(0.02 * parameter.std().nan_to_num(0.0) * torch.randn(parameter.shape, generator=stream))
    noise = generator.base_noise(list(range(8)))
    fresh = generator.base_noise(list(range(100, 105)))
    sft_batch = SftBatch(noise, condition, targets, images, fresh, condition[:5])
    with using(generator, student):
        yield generator, teacher, student, sft_batch


def test_the_loss_is_the_formula(step):
    generator, teacher, _, batch = step
    config = SftConfig(
        latent_loss_weight=0.7, pixel_l1_weight=0.3, preserve_latent_weight=0.2, preserve_pixel_weight=0.4
    )
    terms = sft_loss(generator, teacher, batch, config)
    with torch.no_grad():
        matched = generator.denoise(batch.noise, batch.condition)
        after = generator.denoise(batch.preserve_noise, batch.preserve_condition)
        with teacher.standing_in(generator):
            before = generator.denoise(batch.preserve_noise, batch.preserve_condition)
        expected = {
            "latent": ((matched - batch.target_latents) ** 2).mean(),
            "pixel": (generator.decode(matched) - batch.images).abs().mean(),
            "preserve_latent": ((after - before) ** 2).mean(),
            "preserve_pixel": (generator.decode(after) - generator.decode(before)).abs().mean(),
        }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    total = sum(w * expected[n] for w, n in zip((0.7, 0.3, 0.2, 0.4), expected, strict=True))
    torch.testing.assert_close(terms["loss"], total, rtol=1e-4, atol=1e-6)


def test_differences_between_two_noises_of_a_prompt_are_held(step):
    generator, teacher, _, batch = step
    two = replace(batch, preserve_noise=batch.preserve_noise[:4], preserve_condition=batch.condition[[0, 0, 1, 1]])
    terms = sft_loss(
        generator,
        teacher,
        two,
        SftConfig(preserve_latent_weight=0.2, preserve_pixel_weight=0.4, preserve_differences=True),
    )

    @torch.no_grad()
    def apart(decode=lambda latents: latents):
        each = decode(generator.denoise(two.preserve_noise, two.preserve_condition))
        return torch.stack([each[0] - each[1], each[2] - each[3]])

    after, images = apart(), apart(generator.decode)
    with teacher.standing_in(generator):
        before, images_before = apart(), apart(generator.decode)
    torch.testing.assert_close(terms["preserve_latent"], ((after - before) ** 2).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["preserve_pixel"], (images - images_before).abs().mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("differences", [False, True])
def test_preserve_rows_of_unequal_parts_count_alike(step, differences):
    generator, teacher, _, batch = step
    config = SftConfig(preserve_latent_weight=1.0, preserve_pixel_weight=1.0, preserve_differences=differences)
    whole = replace(batch, preserve_noise=batch.noise[:2], preserve_condition=batch.condition[:2])
    # The second part is filled up, with rows that would change the mean.
    filled = replace(
        batch,
        preserve_noise=batch.noise[:4],
        preserve_condition=batch.condition[:4],
        preserve_weights=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )
    expected = sft_loss(generator, teacher, whole, config)
    parts = [sft_loss(generator, teacher, part, config) for part in filled.split(2)]
    for name in TERMS:
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(mean, expected[name], rtol=1e-5, atol=1e-7)


def test_only_the_student_gets_gradients(step):
    generator, teacher, student, batch = step
    sft_loss(generator, teacher, batch, SftConfig(preserve_latent_weight=1.0))["loss"].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.network.parameters())


def test_a_student_that_has_not_moved_is_preserved_exactly(step):
    generator, teacher, _, batch = step
    with using(generator, copy.deepcopy(teacher.network)):
        terms = sft_loss(generator, teacher, batch, SftConfig(preserve_latent_weight=1.0, preserve_pixel_weight=1.0))
    assert terms["preserve_latent"] < 1e-10
    assert terms["preserve_pixel"] < 1e-5


def test_terms_of_weight_zero_are_not_computed(step):
    generator, teacher, _, batch = step
    calls = []
    hook = generator.trainable.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    sft_loss(generator, teacher, batch, SftConfig(preserve_latent_weight=0.0))
    hook.remove()
    assert calls == [8]


def test_micro_batches_cover_the_batch(step):
    _, _, _, batch = step
    whole = SftBatch(
        batch.noise, batch.condition, batch.target_latents, batch.images, batch.noise[:4], batch.condition[:4]
    )
    parts = whole.split(4)
    assert [(len(p.noise), len(p.preserve_noise)) for p in parts] == [(2, 1)] * 4
    for name in ("noise", "target_latents", "images", "preserve_noise"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
