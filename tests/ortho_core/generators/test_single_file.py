"""Checkpoints in one file, read by diffusers' own converter from the original names."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.single_file import SINGLE_FILE, single_file_tensors, write_single_file
from tests.small_pipelines import save_stable_diffusion

PROMPTS = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]


@pytest.fixture(scope="module")
def stable_diffusion_2(tiny_turbo, tmp_path_factory):
    """As SD 2, it has OpenCLIP's text encoder without its last block."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd2"
    return save_stable_diffusion(tiny_turbo, folder, text={"hidden_act": "gelu", "num_hidden_layers": 23})


def image(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = DiffusersGenerator(pipeline).base_noise([1, 2])
    return pipeline(PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images


def parts(pipeline):
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize(
    ("which", "reader", "encoders"),
    [
        ("stable_diffusion_xl", StableDiffusionXLPipeline, 2),
        ("stable_diffusion", StableDiffusionPipeline, 1),
        ("stable_diffusion_2", StableDiffusionPipeline, 1),
    ],
)
def test_diffusers_reads_the_same_weights_and_images_from_one_file(which, reader, encoders, request, tmp_path):
    folder = request.getfixturevalue(which)
    pipeline = load_generator(ModelFolder.open(folder)).pipeline
    write_single_file(tmp_path / "one.safetensors", pipeline, title="One", dtype=torch.float32)
    read = reader.from_single_file(
        str(tmp_path / "one.safetensors"), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    assert len(parts(read)) == 2 + encoders
    for name, part in parts(pipeline).items():
        there = parts(read)[name].state_dict()
        for weight, value in part.state_dict().items():
            assert torch.equal(there[weight], value), (name, weight)
    torch.testing.assert_close(image(read), image(pipeline), rtol=0, atol=1e-5)


def test_a_checkpoint_of_a_fine_tuned_model_holds_it_in_float16(stable_diffusion_xl, tmp_path):
    generator = load_generator(ModelFolder.open(stable_diffusion_xl))
    with torch.no_grad():
        generator.pipeline.unet.conv_out.bias += 70_000.0
    generator.save(tmp_path / "mine" / "checkpoint-final", single_file=True)
    file = tmp_path / "mine" / "checkpoint-final" / SINGLE_FILE
    tensors = load_file(file)
    for name, weight in single_file_tensors(generator.pipeline):
        # 70,000 is more than float16 can hold.
        dtype = torch.float32 if name == "model.diffusion_model.out.2.bias" else torch.float16
        assert torch.equal(tensors[name], weight.to(dtype)), name
    with safe_open(file, "pt") as stored:
        header = stored.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header["modelspec.title"] == "mine/checkpoint-final"
    opened = [ModelFolder.open(tmp_path / "mine" / name).fingerprint for name in ("checkpoint-final",)]
    file.unlink()
    assert [ModelFolder.open(file.parent).fingerprint] == opened


def test_a_model_that_predicts_v_says_so_where_comfyui_looks(generator, stable_diffusion_xl):
    assert generator.pipeline.scheduler.config.prediction_type == "v_prediction"
    assert "v_pred" in dict(single_file_tensors(generator.pipeline))
    epsilon = load_generator(ModelFolder.open(stable_diffusion_xl)).pipeline
    assert not {"v_pred", "ztsnr"} & dict(single_file_tensors(epsilon)).keys()


def test_the_last_block_that_sd_2_does_not_use_hands_on_what_it_is_given(stable_diffusion_2):
    pipeline = load_generator(ModelFolder.open(stable_diffusion_2)).pipeline
    tensors = dict(single_file_tensors(pipeline))
    last = "cond_stage_model.model.transformer.resblocks.23."
    before = {name.replace("resblocks.23", "resblocks.22"): name for name in tensors if name.startswith(last)}
    assert len(before) == 12
    assert all(tensors[name].shape == tensors[earlier].shape for earlier, name in before.items())
    assert not any(tensors[name].any() for name in before.values())
