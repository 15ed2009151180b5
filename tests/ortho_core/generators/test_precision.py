import pytest
import torch
from torch import nn

from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.precision import network_dtype, run_network


@pytest.mark.parametrize(
    ("asked", "device", "half", "dtype"),
    [
        ("auto", "cpu", "float16", torch.float32),
        ("auto", "cuda", "float16", torch.float16),
        ("auto", "cuda", "bfloat16", torch.bfloat16),
        ("auto", "cuda:1", "float16", torch.float16),
        ("auto", "cuda", None, torch.float32),
        ("bfloat16", "cuda", "float16", torch.bfloat16),
        ("float16", "cpu", None, torch.float16),
    ],
)
def test_what_is_asked_for_is_taken_and_auto_is_half_precision_on_a_gpu(asked, device, half, dtype):
    assert network_dtype(asked, device, half) == dtype


def gradient(network, x, dtype, weights):
    x = x.clone().requires_grad_(True)
    output = run_network(network, x, dtype)
    (found,) = torch.autograd.grad((output.flatten(1) * weights).sum(), x)
    return found


def test_gradients_that_float16_would_lose_come_through_it():
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)).half()
    whole = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
    whole.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    x = torch.randn(4, 16)
    # One row for each size of gradient: of order one, far below what float16 can hold, beyond it, none.
    weights = torch.randn(4, 16) * torch.tensor([1.0, 1e-9, 1e6, 0.0])[:, None]
    expected = gradient(whole, x, torch.float32, weights)
    found = gradient(half, x, torch.float16, weights)
    bare = x.clone().requires_grad_(True)
    (lost,) = torch.autograd.grad((half(bare.half()).float() * weights).sum(), bare)
    assert not lost[1].any()
    assert not lost[2].isfinite().all()
    assert not found[3].any()
    for row in range(3):
        assert (found[row] - expected[row]).norm() < 2e-3 * expected[row].norm()
    # A row's gradient does not hang on its company.
    assert torch.equal(found[:1], gradient(half, x[:1], torch.float16, weights[:1]))


def test_a_gradient_at_the_end_of_float32_stays_finite():
    weights = torch.full((2, 4), 1e-42)
    weights[1] = 1e38
    found = gradient(nn.Linear(4, 4, bias=False).half(), torch.ones(2, 4), torch.float16, weights)
    assert found.isfinite().all()
    assert found[1].any()


def test_a_gradient_that_is_not_finite_stays_so_and_spoils_no_other():
    network = nn.Linear(4, 4).half()
    weights = torch.ones(2, 4)
    weights[0, 1] = torch.inf
    found = gradient(network, torch.ones(2, 4), torch.float16, weights)
    assert not found[0].isfinite().all()
    assert found[1].isfinite().all()


def test_float32_is_left_as_it_is(generator):
    condition = generator.encode_prompts(["a handwritten one"] * 2)
    noise = generator.base_noise([1, 2]).requires_grad_(True)
    (found,) = torch.autograd.grad(generator.denoise(noise, condition).square().sum(), noise)
    bare = noise.detach().clone().requires_grad_(True)
    output = generator.trainable(
        bare * generator.step.input_scale,
        torch.full((2,), generator.step.timestep),
        encoder_hidden_states=condition.tensors["encoder_hidden_states"],
        added_cond_kwargs={k: condition.tensors[k] for k in ("text_embeds", "time_ids")},
    ).sample
    latents = generator.step.noise_weight * bare + generator.step.output_weight * output
    (expected,) = torch.autograd.grad(latents.square().sum(), bare)
    assert torch.equal(found, expected)


def test_a_pipeline_in_float16_answers_as_in_float32(tiny_turbo, generator):
    half = load_generator(ModelFolder.open(tiny_turbo), dtype="float16")
    assert half.trainable.dtype == torch.float16
    noise = generator.base_noise([1, 2, 3])
    found, expected = (one.denoise(noise, one.encode_prompts(["a handwritten one"] * 3)) for one in (half, generator))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.01 * expected.norm()
