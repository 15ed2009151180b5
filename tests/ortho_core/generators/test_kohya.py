"""LoRAs in kohya's format: read by diffusers' own converter, and matched against the names that other programs look for."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.kohya import kohya_tensors, write_kohya
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, lora_parameters, read_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.lora_files import KOHYA_WEIGHTS
from ortho_core.generators.model_folder import LORA_WEIGHTS, ModelFolder
from tests.ortho_core.generators.real_unets import CONFIGS, DEFAULTS, attentions, unet

PROMPTS = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]
#: Linear and convolution layers; α ≠ r, and not to be had in float16 exactly.
LORA = Lora(4, 10.3, ("to_q", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "conv_shortcut", "time_emb_proj"))


def image(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = DiffusersGenerator(pipeline).base_noise([1, 2])
    return pipeline(PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images


def adapted(folder, out, lora=LORA):
    """A generator with an adapter that does something, saved into `out`."""
    generator = load_generator(ModelFolder.open(folder))
    add_lora(generator.trainable, lora, seed=3)
    with torch.no_grad():
        for parameter in lora_parameters(generator.trainable):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
    generator.save(out)
    return generator


@pytest.mark.parametrize("which", ["tiny_turbo", "stable_diffusion_xl", "stable_diffusion"])
def test_diffusers_reads_the_same_adapter_from_kohyas_names(which, request, tmp_path):
    base = request.getfixturevalue(which)
    generator = adapted(base, tmp_path / "lora")
    lora, weights = read_lora(tmp_path / "lora" / LORA_WEIGHTS)
    file = tmp_path / "kohya.safetensors"
    write_kohya(file, weights, lora, generator.pipeline.unet.config, title="x", base="y", dtype=torch.float32)
    kind = StableDiffusionPipeline if which == "stable_diffusion" else StableDiffusionXLPipeline
    pipeline = kind.from_pretrained(base)
    before = image(pipeline)
    pipeline.load_lora_weights(file)
    after = image(pipeline)
    with torch.no_grad():
        latents = generator.denoise(generator.base_noise([1, 2]), generator.encode_prompts(PROMPTS))
        expected = generator.decode(latents).clamp(0, 1)
    assert (before - expected).abs().max() > 0.05
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-4)


def test_the_file_in_a_lora_folder_is_the_adapter_in_float16_with_a_header(stable_diffusion_xl, tmp_path):
    adapted(stable_diffusion_xl, tmp_path / "mine" / "lora")
    folder = tmp_path / "mine" / "lora"
    lora, weights = read_lora(folder / LORA_WEIGHTS)
    tensors = load_file(folder / KOHYA_WEIGHTS)
    assert len(tensors) == len(weights) / 2 * 3
    assert {name.partition(".")[2]: value.dtype for name, value in tensors.items()} == {
        "lora_down.weight": torch.float16,
        "lora_up.weight": torch.float16,
        "alpha": torch.float32,
    }
    assert {round(value.item(), 5) for name, value in tensors.items() if name.endswith(".alpha")} == {lora.alpha}
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_out_0"
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    assert torch.equal(tensors[f"{stem}.lora_down.weight"], weights[f"{layer}.lora_A.weight"].half())
    assert torch.equal(tensors[f"{stem}.lora_up.weight"], weights[f"{layer}.lora_B.weight"].half())
    with safe_open(folder / KOHYA_WEIGHTS, "pt") as stored:
        header = stored.metadata()
    expected = {"ss_network_dim": "4", "ss_network_alpha": "10.3", "ss_base_model_version": "sdxl_base_v1-0"}
    expected |= {"ss_network_module": "networks.lora", "ss_sd_model_name": "tiny-sdxl", "modelspec.title": "mine/lora"}
    assert header | expected | {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"} == header
    assert str(tmp_path) not in str(header)


def adapter_names(network, targets):
    """Names and empty weights of a LoRA of rank 4, as PEFT has them."""
    layers = [name for name, _ in network.named_modules() if name.endswith(tuple(f".{target}" for target in targets))]
    return {f"{layer}.lora_{part}.weight": torch.zeros(1) for layer in layers for part in "AB"}


@pytest.mark.parametrize("which", CONFIGS)
def test_all_default_layers_of_the_real_unets_have_the_names_that_other_programs_look_for(which):
    network = unet(which)
    lora = Lora(4, 4.0)
    names = set(kohya_tensors(adapter_names(network, lora.targets), lora, network.config, torch.float16))
    blocks = [f"{place}.transformer_blocks.{n}" for place, depth in attentions(which) for n in range(depth)]
    assert len(blocks) == {"sdxl": 70, "sd15": 16, "sd2": 16}[which]
    layers = {f"{block}.{layer}" for block in blocks for layer in DEFAULTS}
    if which != "sdxl":  # of these kohya trains diffusers' network, whose levels and layers are counted apart
        layers = {as_diffusers(layer) for layer in layers}
    stems = {f"lora_unet_{layer.replace('.', '_')}" for layer in layers}
    assert names == {f"{stem}.{part}" for stem in stems for part in ("lora_down.weight", "lora_up.weight", "alpha")}


def as_diffusers(layer):
    """Of four levels with two layers each, and three on the way up."""
    where, place, rest = layer.split(".", 2)
    rest = rest.removeprefix("1.")
    if where == "middle_block":
        return f"mid_block.attentions.0.{rest}"
    if where == "input_blocks":
        return f"down_blocks.{(int(place) - 1) // 3}.attentions.{(int(place) - 1) % 3}.{rest}"
    return f"up_blocks.{int(place) // 3}.attentions.{int(place) % 3}.{rest}"


def test_base_models_are_told_apart_as_a1111_does(tmp_path):
    for which, version, second in (("sdxl", "sdxl_", "False"), ("sd2", "sd_v2", "True"), ("sd15", "sd_v1", "False")):
        write_kohya(tmp_path / which, {}, Lora(4, 4.0), unet(which).config, title="x", base="y")
        with safe_open(tmp_path / which, "pt") as stored:
            header = stored.metadata()
        assert header["ss_base_model_version"].startswith(version)
        assert header["ss_v2"] == second
