"""One update against the same update written out with PyTorch's own parts."""

import copy

import pytest
import torch
from torch import nn

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, lora_parameters
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.loss import TERMS, SftBatch, sft_loss
from ortho_core.mstep.loss_scale import FIRST_SCALE
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher
from ortho_core.mstep.update import LossTerms, MStep, half_dtype
from tests.small_pipelines import save_stable_diffusion


@pytest.fixture
def trainable(tiny_turbo):
    """A generator of the test's own, its network ready to train."""
    generator = load_generator(ModelFolder.open(tiny_turbo))
    generator.trainable.requires_grad_(True)
    return generator


@pytest.fixture
def data(batch, generator):
    condition, images, targets = batch
    noise, fresh = generator.base_noise(list(range(8))), generator.base_noise(list(range(100, 104)))
    return SftBatch(noise, condition, targets, images, fresh, condition[:4])


@pytest.fixture(scope="module")
def small(tiny_turbo, tmp_path_factory):
    """For float16, in which a CPU takes ten times as long."""
    return save_stable_diffusion(tiny_turbo, tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def few(small, batch):
    generator = load_generator(ModelFolder.open(small))
    with torch.no_grad():
        condition = generator.encode_prompts(["a red three", "a blue five"])
    noise = generator.base_noise([0, 1, 2])
    return SftBatch(noise[:2], condition, batch[2][:2], batch[1][:2], noise[2:], condition[:1])


def weights(generator):
    return nn.utils.parameters_to_vector(generator.trainable.parameters()).detach().clone()


def trained(tiny_turbo, data, updates=2, **options):
    generator = load_generator(ModelFolder.open(tiny_turbo))
    step = MStep(generator, MStepConfig(lr=1e-3, **options), 10)
    outcomes = [step.update(data) for _ in range(updates)]
    return step, outcomes


def test_an_update_is_clipped_adamw_on_the_loss(trainable, data, tiny_turbo):
    config = MStepConfig(lr=1e-3, max_grad_norm=0.5)
    teacher = FrozenTeacher.copy_of(trainable.trainable)
    optimizer = torch.optim.AdamW(trainable.trainable.parameters(), lr=1e-3, weight_decay=0.0, fused=False)
    losses = []
    for _ in range(2):
        terms = sft_loss(trainable, teacher, data, config)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(trainable.trainable.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append([float(terms[name].detach()) for name in TERMS])
    step, outcomes = trained(tiny_turbo, data, max_grad_norm=0.5)
    torch.testing.assert_close(torch.tensor([o.terms for o in outcomes]), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert outcomes[-1].grad_norm == pytest.approx(float(norm), rel=1e-4)
    torch.testing.assert_close(weights(step.generator), weights(trainable), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulation_changes_nothing_but_the_memory(tiny_turbo, data, pieces):
    whole, expected = trained(tiny_turbo, data, pixel_l1_weight=0.5)
    split, outcomes = trained(tiny_turbo, data, pixel_l1_weight=0.5, gradient_accumulation_steps=pieces)
    for a, b in zip(outcomes, expected, strict=True):
        assert a.terms == pytest.approx(b.terms, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(a.rows, b.rows, rtol=1e-4, atol=1e-6)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
    # As a whole: AdamW moves a weight whose gradient is rounding noise by the learning rate too, in either direction.
    apart = weights(split.generator) - weights(whole.generator)
    assert (
        apart.norm() < 1e-2 * (weights(whole.generator) - weights(load_generator(ModelFolder.open(tiny_turbo)))).norm()
    )


def test_gradient_checkpointing_changes_nothing_but_the_memory(tiny_turbo, data):
    _, expected = trained(tiny_turbo, data)
    generator = load_generator(ModelFolder.open(tiny_turbo), gradient_checkpointing=True)
    step = MStep(generator, MStepConfig(lr=1e-3), 10)
    for outcome in expected:
        assert step.update(data).terms == pytest.approx(outcome.terms, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"ema": True}, {"optimizer": "adafactor"}, {"lr_schedule": "cosine", "warmup_steps": 2}]
)
def test_a_resumed_state_goes_on_bit_for_bit(tiny_turbo, data, options):
    through, expected = trained(tiny_turbo, data, 4, **options)
    before, _ = trained(tiny_turbo, data, 2, **options)
    state = copy.deepcopy(before.state_dict())
    after, _ = trained(tiny_turbo, data, 0, **options)
    after.load_state_dict(state)
    outcomes = [after.update(data) for _ in range(2)]
    assert [o.terms for o in outcomes] == [o.terms for o in expected[2:]]
    assert torch.equal(weights(after.generator), weights(through.generator))
    assert after.lr == through.lr
    if options.get("ema"):
        with after.averaged(), through.averaged():
            assert torch.equal(weights(after.generator), weights(through.generator))


def test_the_average_is_that_of_the_formula_and_is_only_borrowed(tiny_turbo, data):
    step, _ = trained(tiny_turbo, data, 0, ema=True, ema_decay=0.5)
    average = weights(step.generator)
    for n in range(1, 4):
        step.update(data)
        decay = 0.0 if n == 1 else min(0.5, (1 + (n - 1)) / (10 + (n - 1)))
        average = decay * average + (1 - decay) * weights(step.generator)
    now = weights(step.generator)
    with step.averaged():
        torch.testing.assert_close(weights(step.generator), average, rtol=1e-5, atol=1e-6)
    assert torch.equal(weights(step.generator), now)
    assert not torch.equal(now, average)


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_turbo, data):
    step, _ = trained(tiny_turbo, data, 1, ema=True)
    before = copy.deepcopy(step.state_dict())
    poisoned = data.target_latents.clone()
    poisoned[5, 0, 0, 0] = torch.nan
    outcome = step.update(SftBatch(**{**vars(data), "target_latents": poisoned}))
    assert not outcome.applied
    assert torch.isfinite(outcome.rows).tolist() == [i != 5 for i in range(8)]
    after = step.state_dict()
    for part in ("network", "ema"):
        assert all(torch.equal(before[part][k], v) for k, v in after[part].items())
    assert step.update(data).applied


def test_bf16_keeps_float32_weights_and_stays_near(tiny_turbo, data):
    _, expected = trained(tiny_turbo, data)
    step, outcomes = trained(tiny_turbo, data, mixed_precision="bf16")
    assert {p.dtype for p in step.parameters} == {torch.float32}
    assert outcomes[0].terms.loss == pytest.approx(expected[0].terms.loss, rel=2e-2)
    assert outcomes[0].terms.loss != expected[0].terms.loss


def test_fp16_scales_the_loss_and_stays_nearer_than_bf16(tiny_turbo, data):
    _, (exact,) = trained(tiny_turbo, data, 1)
    apart = {}
    for precision in ("bf16", "fp16"):
        step, (outcome,) = trained(tiny_turbo, data, 1, mixed_precision=precision)
        assert {p.dtype for p in step.parameters} == {torch.float32}
        assert step.loss_scale.value == (1 if precision == "bf16" else FIRST_SCALE)
        apart[precision] = abs(float(outcome.grad_norm) - float(exact.grad_norm)) / float(exact.grad_norm)
    assert apart["fp16"] < 0.01
    assert apart["fp16"] < apart["bf16"]


def test_a_gradient_that_overflows_is_made_again_with_a_smaller_scale(small, few):
    _, (expected,) = trained(small, few, 1, mixed_precision="fp16")
    step, _ = trained(small, few, 0, mixed_precision="fp16")
    step.loss_scale.value = 2.0**40
    outcome = step.update(few)
    assert outcome.applied
    assert 1 < step.loss_scale.value < 2.0**40
    assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=1e-2)
    again = copy.deepcopy(step.state_dict())
    other, _ = trained(small, few, 0, mixed_precision="fp16")
    other.load_state_dict(again)
    assert other.loss_scale.value == step.loss_scale.value


def test_an_update_that_no_scale_makes_finite_is_left_out(small, few):
    step, _ = trained(small, few, 1, mixed_precision="fp16")
    targets = few.target_latents.clone()
    targets[0, 0, 0, 0] = torch.nan
    outcome = step.update(SftBatch(**{**vars(few), "target_latents": targets}))
    assert not outcome.applied
    assert step.loss_scale.value == FIRST_SCALE
    assert step.update(few).applied


def test_auto_is_float32_on_a_cpu_and_fp16_on_a_gpu():
    for asked, cpu, gpu in (
        ("auto", None, torch.float16),
        ("no", None, None),
        ("bf16", torch.bfloat16, torch.bfloat16),
    ):
        config = MStepConfig(mixed_precision=asked)
        assert half_dtype(torch.device("cpu"), config) == cpu
        assert half_dtype(torch.device("cuda"), config) == gpu


def test_the_schedule_warms_up_and_decays(tiny_turbo, data):
    generator = load_generator(ModelFolder.open(tiny_turbo))
    config = MStepConfig(lr=1e-3, lr_schedule="linear", warmup_steps=2, preserve_latent_weight=0)
    step = MStep(generator, config, 6)
    rates = []
    for _ in range(6):
        rates.append(step.lr)
        step.update(data)
    assert rates == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_a_frozen_network_trains_and_its_start_is_the_teacher(tiny_turbo, data):
    generator = load_generator(tiny_turbo)
    assert not any(p.requires_grad for p in generator.trainable.parameters())
    before = weights(generator)
    step = MStep(generator, MStepConfig(lr=1e-3))
    outcome = step.update(data)
    assert outcome.terms.preserve_latent < 1e-6 < outcome.terms.latent
    assert not torch.equal(weights(generator), before)
    assert torch.equal(nn.utils.parameters_to_vector(step.teacher.network.parameters()), before)
    assert str(outcome.terms).startswith(f"loss {outcome.terms.loss:.4g}, latent ")


def test_of_an_adapter_the_adapter_alone_trains_and_the_teacher_is_no_copy(tiny_turbo, data):
    generator = load_generator(tiny_turbo)
    add_lora(generator.trainable, Lora(2, 2.0), 0)
    step = MStep(generator, MStepConfig(lr=1e-3))
    assert isinstance(step.teacher, AdapterTeacher)
    assert len(step.parameters) == len(lora_parameters(generator.trainable))
    assert step.update(data).terms.preserve_latent < 1e-6


def test_without_preserve_terms_there_is_no_teacher(tiny_turbo):
    assert MStep(load_generator(tiny_turbo), MStepConfig(preserve_latent_weight=0)).teacher is None


def test_what_cannot_train_says_what_to_do(tiny_turbo, data):
    for options, message in (
        ({"dtype": "float16"}, "weights in float16 are not precise enough to train: .*dtype='float32'"),
        ({"quantize": "int8"}, "packed weights .* cannot be trained: .*add_lora"),
    ):
        with pytest.raises(UserError, match=message):
            MStep(load_generator(tiny_turbo, **options))
    with pytest.raises(UserError, match=r"lr_schedule linear decays over the updates: .*updates=NUMBER"):
        MStep(load_generator(tiny_turbo), MStepConfig(lr_schedule="linear"))
    bare = SftBatch(data.noise, data.condition, data.target_latents)
    with pytest.raises(UserError, match="but the batch has no preserve_noise"):
        MStep(load_generator(tiny_turbo)).update(bare)


def test_the_terms_of_an_update_have_the_names_of_the_loss():
    assert LossTerms._fields == tuple(TERMS)
