"""Packed weights against the plain ones, and the generator with them against itself without."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, lora_parameters, teacher_adapter
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.pipelines.stable_diffusion import StableDiffusionXL
from ortho_core.generators.quantized import (
    NF4_BLOCK,
    PACKED,
    Int8Linear,
    NF4Linear,
    QuantizedLinear,
    is_quantized,
    quantize_layers,
)
from ortho_core.memory.live import LiveBytes
from tests.ortho_core.generators.test_lora import LORA, latents, train_a_little

CPU = torch.device("cpu")
#: The quantiles of N(0, 1) that nf4 stands for, from appendix E of the QLoRA paper.
NF4 = (
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = nn.Linear(96, 40).requires_grad_(False)
    made.weight[3] = 0  # a row without a scale
    made.weight[4] *= 1000
    return made


def test_int8_is_within_half_a_step_of_each_rows_own_scale(layer):
    packed = Int8Linear.of(layer, CPU)
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ((packed.taken_back(torch.float32) - layer.weight).abs() <= step / 2 + 1e-7).all()
    assert packed.weight.dtype == torch.int8
    assert packed.weight.abs().max() == 127


def test_nf4_is_the_nearest_of_its_sixteen_values_times_the_largest_weight_of_the_block(layer):
    blocks = layer.weight.reshape(-1, NF4_BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-12)
    table = torch.tensor(NF4)
    nearest = table[(blocks[..., None] / scale[..., None] - table).abs().argmin(-1)] * scale
    packed = NF4Linear.of(layer, CPU)
    torch.testing.assert_close(packed.taken_back(torch.float32), nearest.reshape(layer.weight.shape), rtol=0, atol=1e-4)
    assert packed.weight.nbytes == layer.weight.numel() / 2


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_packed_layer_is_a_plain_one_of_the_weights_taken_back(layer, kind, dtype):
    packed = PACKED[kind](layer.to(dtype), CPU)
    plain = nn.Linear(96, 40, dtype=dtype)
    plain.weight.data, plain.bias.data = packed.taken_back(dtype), layer.bias.data
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for one in (packed, plain):
        entered = x.clone().requires_grad_(True)
        output = one(entered)
        output.float().square().sum().backward()
        found.append((output, entered.grad))
    assert found[0][0].dtype == dtype
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_layer_has_autocasts_precision_inside_it(layer, kind):
    packed = PACKED[kind](layer, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        output = packed(torch.ones(2, 96))
    assert output.dtype == torch.bfloat16
    expected = packed(torch.ones(2, 96))
    assert 0 < (output - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("kind", PACKED)
def test_neither_weights_nor_inputs_are_kept_for_the_gradient(kind):
    layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))).requires_grad_(False)
    # The work of a gradient on float32 weights keeps what is between two layers nowhere either.
    peaks = {}
    x = torch.zeros(4, 512, requires_grad=True)
    for name in ("none", kind):
        quantize_layers(layers, name, CPU)
        with LiveBytes() as live:
            peaks[name] = live.peak_of(lambda: layers(x).sum().backward())
    one_taken_back = 512 * 512 * 4
    assert peaks[kind] <= peaks["none"] + 2 * one_taken_back  # q in float32 and its product, of one layer


#: The latents' relative error, as `benchmarks.precision` finds it: 0.0006 and 0.01.
@pytest.mark.parametrize(("kind", "error", "bits"), [("int8", 0.003, 8), ("nf4", 0.05, 4)])
def test_a_generators_linear_layers_are_packed_but_for_its_embeddings(kind, error, bits, generator, tiny_turbo):
    packed = load_generator(ModelFolder.open(tiny_turbo), quantize=kind)
    layers = {name: m for name, m in packed.trainable.named_modules() if isinstance(m, nn.Linear)}
    unpacked = StableDiffusionXL.not_quantized
    left = {name for name, m in layers.items() if not isinstance(m, QuantizedLinear)}
    assert left == {name for name in layers if any(part in unpacked for part in name.split("."))}
    assert 0 < len(left) < len(layers) / 2
    assert not any(p.requires_grad for p in packed.trainable.parameters())
    found, expected = latents(packed), latents(generator)
    assert 0 < (found - expected).norm() / expected.norm() < error

    plain = dict(generator.trainable.named_modules())
    for name in layers.keys() - left:
        assert layers[name].weight.nbytes == plain[name].weight.numel() * bits / 8
        assert layers[name].scale.nbytes <= 0.1 * plain[name].weight.nbytes


def test_the_gradient_in_the_noise_comes_through(generator, tiny_turbo):
    gradients = []
    for one in (generator, load_generator(ModelFolder.open(tiny_turbo), quantize="int8")):
        noise = one.base_noise([1, 2]).requires_grad_(True)
        one.denoise(noise, one.encode_prompts(["a", "b"])).square().sum().backward()
        gradients.append(noise.grad)
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_an_adapter_trains_on_a_packed_base_and_is_the_teacher_without(tiny_turbo, tmp_path):
    packed = load_generator(ModelFolder.open(tiny_turbo), quantize="nf4")
    before = latents(packed)
    add_lora(packed.trainable, LORA, 0)
    torch.testing.assert_close(latents(packed), before)
    train_a_little(packed)
    assert (latents(packed) - before).abs().max() > 0.01
    with teacher_adapter(packed.trainable):
        torch.testing.assert_close(latents(packed), before)
    trained = latents(packed)
    packed.save(tmp_path / "lora")
    again = load_generator(ModelFolder.open(tmp_path / "lora"), keep_adapter=True, quantize="nf4")
    torch.testing.assert_close(latents(again), trained)
    # On the base as it was, it is the same adapter: what it changes is what it changed.
    whole = load_generator(ModelFolder.open(tmp_path / "lora"))
    assert not is_quantized(whole.trainable)
    with torch.no_grad():
        change, elsewhere = trained - before, latents(whole) - latents(load_generator(ModelFolder.open(tiny_turbo)))
    assert (change - elsewhere).norm() < 0.5 * change.norm()


def test_an_adapter_is_merged_before_the_weights_are_packed(tiny_turbo, tmp_path):
    generator = load_generator(ModelFolder.open(tiny_turbo), keep_adapter=True)
    add_lora(generator.trainable, Lora(2, 2.0), 0)
    for p in lora_parameters(generator.trainable):
        p.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    generator.save(tmp_path / "lora")
    merged = load_generator(ModelFolder.open(tmp_path / "lora"))
    quantize_layers(merged.trainable, "int8", CPU, StableDiffusionXL.not_quantized)
    loaded = load_generator(ModelFolder.open(tmp_path / "lora"), quantize="int8")
    assert torch.equal(latents(loaded), latents(merged))


def test_packed_weights_are_not_saved(tiny_turbo, tmp_path):
    packed = load_generator(ModelFolder.open(tiny_turbo), quantize="int8")
    with pytest.raises(UserError, match="load the model without --quantize"):
        packed.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nf4_says_what_it_needs(tiny_turbo, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"pip install 'ortho-em\[nf4\]'"):
        load_generator(ModelFolder.open(tiny_turbo), quantize="nf4")
    assert is_quantized(load_generator(ModelFolder.open(tiny_turbo), quantize="int8").trainable)


def test_nothing_is_said_of_kernels_that_nothing_calls(tiny_turbo):
    program = (
        "from ortho_core.generators.load import load_generator; from ortho_core.generators.model_folder import ModelFolder\n"
        f"load_generator(ModelFolder.open({str(tiny_turbo)!r}), quantize='nf4')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
