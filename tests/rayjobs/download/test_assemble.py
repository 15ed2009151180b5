"""Pipelines made of weights that are published apart, on tiny stand-ins for their bases."""

import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.download.assemble import assemble
from rayjobs.verb.catalog import Recipe
from tests.small_pipelines import save_stable_diffusion

WEIGHTS = "diffusion_pytorch_model.safetensors"


def recipe(scheduler, timestep, prediction_type="epsilon", **options):
    return Recipe(scheduler=scheduler, prediction_type=prediction_type, timestep=timestep, options=options)


@pytest.fixture(scope="module")
def base(tiny_turbo, tmp_path_factory):
    """An SDXL base as the catalogue downloads it: all but the UNet's weights."""
    folder = tmp_path_factory.mktemp("models") / "sdxl-base"
    shutil.copytree(tiny_turbo, folder)
    (folder / "unet" / WEIGHTS).unlink()
    return folder


@pytest.fixture(scope="module")
def published(tiny_turbo):
    """The state of another UNet of that shape."""
    draw = torch.Generator().manual_seed(1)
    state = load_file(tiny_turbo / "unet" / WEIGHTS)
    return {name: value + 0.01 * torch.randn(value.shape, generator=draw) for name, value in state.items()}


@pytest.fixture(scope="module")
def sd_base(tiny_turbo, tmp_path_factory):
    """A Stable Diffusion 1.5 of the catalogue: its index names a safety checker that is not downloaded."""
    folder = save_stable_diffusion(tiny_turbo, tmp_path_factory.mktemp("models") / "sd15-base")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_unet_takes_its_place_in_the_base_with_its_own_step(suffix, base, published, tmp_path):
    weights = tmp_path / f"one_step_unet{suffix}"
    if suffix == ".bin":  # as DMD2's, in half precision
        torch.save({name: value.half() for name, value in published.items()}, weights)
    else:
        save_file(published, weights)
    into = tmp_path / "assembled"
    assemble("unet", base, weights, into, recipe("LCMScheduler", 399), lambda f: (f / "note").write_text("x"))
    saved = load_file(into / "unet" / WEIGHTS)
    assert {value.dtype for value in saved.values()} == {torch.float16 if suffix == ".bin" else torch.float32}
    generator = load_generator(ModelFolder.open(into))
    assert (generator.step.timestep, (into / "note").read_text()) == (399, "x")
    condition = generator.encode_prompts(["a red handwritten two on a white background"])
    noise = generator.base_noise([3])
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet")).eval()
    unet.load_state_dict({name: value.float() for name, value in saved.items()})
    # LCM's own step from timestep 399, its boundary conditions included.
    scheduler = generator.pipeline.scheduler
    scheduler.set_timesteps(timesteps=[399])
    tensors = dict(condition.tensors)
    added = {name: tensors.pop(name) for name in ("text_embeds", "time_ids")}
    with torch.no_grad():
        output = unet(noise, 399, **tensors, added_cond_kwargs=added).sample
        expected = scheduler.step(output, scheduler.timesteps[0], noise).denoised
        torch.testing.assert_close(generator.denoise(noise, condition), expected, atol=1e-4, rtol=1e-4)


def test_a_unet_that_predicts_the_image_steps_to_its_output_with_the_options_of_the_recipe(base, published, tmp_path):
    leading = tmp_path / "leading"  # as the base of SDXL is
    shutil.copytree(base, leading)
    config = json.loads((leading / "scheduler" / "scheduler_config.json").read_text())
    (leading / "scheduler" / "scheduler_config.json").write_text(json.dumps({**config, "timestep_spacing": "leading"}))
    save_file(published, tmp_path / "x0.safetensors")
    step = recipe("EulerDiscreteScheduler", 999, "sample", timestep_spacing="trailing")
    assemble("unet", leading, tmp_path / "x0.safetensors", tmp_path / "into", step)
    generator = load_generator(ModelFolder.open(tmp_path / "into"))
    scheduler = generator.pipeline.scheduler
    assert scheduler.config.timestep_spacing == "trailing"
    condition = generator.encode_prompts(["a red handwritten two on a white background"])
    noise = generator.base_noise([3])
    # SDXL-Lightning: the UNet gets the noise of sigma_max, scaled by Euler, and its output is the latent.
    sigma = float(((1 - scheduler.alphas_cumprod[999]) / scheduler.alphas_cumprod[999]) ** 0.5)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet")).eval()
    unet.load_state_dict(published)
    tensors = dict(condition.tensors)
    added = {name: tensors.pop(name) for name in ("text_embeds", "time_ids")}
    with torch.no_grad():
        expected = unet(noise * sigma / (sigma**2 + 1) ** 0.5, 999, **tensors, added_cond_kwargs=added).sample
        torch.testing.assert_close(generator.denoise(noise, condition), expected, atol=1e-4, rtol=1e-4)


def test_an_option_that_the_scheduler_does_not_have_is_refused(base, published, tmp_path):
    save_file(published, tmp_path / "unet.safetensors")
    wrong = recipe("EulerDiscreteScheduler", 999, timestep_spacng="trailing", use_karras_sigmas=False)
    with pytest.raises(UserError, match=r"^EulerDiscreteScheduler has no options timestep_spacng$"):
        assemble("unet", base, tmp_path / "unet.safetensors", tmp_path / "into", wrong)
    assert not (tmp_path / "into").exists()


def kohya(unet):
    """A LoRA of rank 2 on the attention's projections in the names that Hyper-SD's has, and what it adds to each weight."""
    draw = torch.Generator().manual_seed(2)
    file, added = {}, {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            down = torch.randn(2, module.in_features, generator=draw)
            up = 0.1 * torch.randn(module.out_features, 2, generator=draw)
            key = f"lora_unet_{name.replace('.', '_')}"
            file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
            added[f"{name}.weight"] = up @ down / 2
    return file, added


def test_a_lora_is_merged_and_the_safety_checker_left_out(sd_base, tmp_path):
    before = load_file(sd_base / "unet" / WEIGHTS)
    unet = UNet2DConditionModel.from_pretrained(sd_base / "unet")
    file, added = kohya(unet)
    save_file(file, tmp_path / "lora.safetensors")
    assemble("lora", sd_base, tmp_path / "lora.safetensors", tmp_path / "into", recipe("TCDScheduler", 999))
    after = load_file(tmp_path / "into" / "unet" / WEIGHTS)
    assert after.keys() == before.keys()
    assert added
    for name, value in before.items():
        torch.testing.assert_close(after[name], value + added.get(name, 0), atol=1e-5, rtol=1e-5)
    generator = load_generator(ModelFolder.open(tmp_path / "into"))
    assert generator.step.timestep == 999
    assert type(generator.pipeline.scheduler).__name__ == "TCDScheduler"


def test_weights_of_another_model_are_refused_and_leave_nothing(base, sd_base, published, tmp_path):
    unet = next(iter(published))
    save_file({name: value for name, value in published.items() if name != unet}, tmp_path / "part.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.bin").write_text("no weights")
    save_file({"something.else": torch.zeros(2)}, tmp_path / "other.safetensors")
    for how, folder, weights, message in (
        ("unet", base, "part.safetensors", f"does not fit the UNet of {base}: .*Missing key"),
        ("unet", base, "text.safetensors", "is not a safetensors file"),
        ("unet", base, "text.bin", "is not a file of PyTorch weights"),
        ("lora", sd_base, "other.safetensors", "is not a LoRA of this base"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            assemble(how, folder, tmp_path / weights, tmp_path / "into", recipe("LCMScheduler", 800))
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "into").exists()
