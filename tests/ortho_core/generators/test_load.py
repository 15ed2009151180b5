"""The generator against diffusers itself: the same prompt embeddings, the same step, the same image."""

import json
import logging
import shutil

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
)

from ortho_core.errors import UserError
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.one_step import OneStep

PROMPTS = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "euler-ancestral-epsilon": (EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}, None),
    "euler-ancestral-v": (
        EulerAncestralDiscreteScheduler,
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        None,
    ),
    "euler-epsilon": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, None),
    "ddim-v": (
        DDIMScheduler,
        {
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "set_alpha_to_one": False,
        },
        None,
    ),
    "lcm-800": (LCMScheduler, {"clip_sample": False}, 799),
    "tcd": (TCDScheduler, {"clip_sample": False}, None),
}


def pipeline_call(pipeline, prompts, noise, timestep=None):
    """The images that the pipeline's own `__call__` makes of given noise, without guidance, in [0, 1]."""
    steps = {"num_inference_steps": 1} if timestep is None else {"timesteps": [timestep]}
    return pipeline(prompts, latents=noise, guidance_scale=0.0, output_type="pt", **steps).images


@pytest.fixture
def pipeline(tiny_turbo):
    loaded = StableDiffusionXLPipeline.from_pretrained(tiny_turbo)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_step_equals_the_pipelines_own_call(name, pipeline):
    kind, options, timestep = SCHEDULERS[name]
    pipeline.scheduler = kind(**BETAS, **options)
    generator = DiffusersGenerator(pipeline, timestep)
    noise = generator.base_noise([1, 2])
    with torch.no_grad():
        latents = generator.denoise(noise, generator.encode_prompts(PROMPTS))
        steps = {"num_inference_steps": 1} if timestep is None else {"timesteps": [timestep]}
        expected = pipeline(PROMPTS, latents=noise, guidance_scale=0.0, output_type="latent", **steps).images
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_images_equal_the_pipelines_own(generator, pipeline):
    noise = generator.base_noise([1, 2])
    with torch.no_grad():
        ours = generator.decode(generator.denoise(noise, generator.encode_prompts(PROMPTS))).clamp(0, 1)
    torch.testing.assert_close(ours, pipeline_call(pipeline, PROMPTS, noise), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 40), (48, 32)])
def test_at_another_size_images_equal_the_pipelines_own(tiny_turbo, pipeline, size):
    Y, X = size
    generator = load_generator(ModelFolder.open(tiny_turbo).at(size))
    assert (generator.latent_shape, generator.image_size) == ((4, Y // 4, X // 4), size)
    noise = generator.base_noise([1, 2])
    with torch.no_grad():
        ours = generator.decode(generator.denoise(noise, generator.encode_prompts(PROMPTS))).clamp(0, 1)
        options = {"num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "pt"}
        theirs = pipeline(PROMPTS, latents=noise, height=Y, width=X, **options).images
    assert ours.shape == (2, 3, Y, X)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_clipping_scheduler_is_refused():
    scheduler = DDIMScheduler(**BETAS, clip_sample=True, timestep_spacing="trailing")
    with pytest.raises(UserError, match="not a fixed linear map"):
        OneStep.of(scheduler)


def test_stable_diffusion_folders_load_by_their_index(stable_diffusion):
    generator = load_generator(ModelFolder.open(stable_diffusion))
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    pipeline.set_progress_bar_config(disable=True)
    noise = generator.base_noise([3, 4])
    with torch.no_grad():
        ours = generator.decode(generator.denoise(noise, generator.encode_prompts(PROMPTS))).clamp(0, 1)
    torch.testing.assert_close(ours, pipeline_call(pipeline, PROMPTS, noise), rtol=0, atol=1e-4)


def test_a_recipe_travels_with_the_folder(stable_diffusion, tmp_path):
    folder = tmp_path / "with-recipe"
    shutil.copytree(stable_diffusion, folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "LCMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({**scheduler, "_class_name": "LCMScheduler", "clip_sample": False})
    )
    (folder / "one_step.json").write_text('{"timestep": 799}')
    assert load_generator(ModelFolder.open(folder)).step.timestep == 799
    load_generator(ModelFolder.open(folder)).save(tmp_path / "saved")
    assert load_generator(ModelFolder.open(tmp_path / "saved")).step.timestep == 799
    adapted = load_generator(ModelFolder.open(folder))
    add_lora(adapted.trainable, Lora(2, 2.0), seed=0)
    adapted.save(tmp_path / "lora")
    assert not (tmp_path / "lora" / "one_step.json").exists()
    assert load_generator(ModelFolder.open(tmp_path / "lora")).step.timestep == 799
    StableDiffusionPipeline.from_pretrained(folder).load_lora_weights(tmp_path / "lora")


def test_encoding_inverts_decoding_of_real_images(generator, batch):
    _, images, targets = batch
    with torch.no_grad():
        assert (generator.decode(targets) - images).abs().mean() < 0.05


def test_gradient_reaches_the_noise(generator, batch):
    condition, _, targets = batch
    noise = generator.base_noise([1, 2]).requires_grad_(True)
    (generator.denoise(noise, condition[:2]) - targets[:2]).square().mean().backward()
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    slope = float((noise.grad * direction).sum())
    h = 1e-2
    with torch.no_grad():
        values = [
            (generator.denoise(noise + s * h * direction, condition[:2]) - targets[:2]).double().square().mean()
            for s in (1, -1)
        ]
    assert slope == pytest.approx(float(values[0] - values[1]) / (2 * h), rel=0.02, abs=1e-5)


def test_a_saved_folder_is_what_diffusers_loads(generator, tmp_path):
    generator.save(tmp_path / "saved")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, StableDiffusionXLPipeline)
    loaded.set_progress_bar_config(disable=True)
    noise = generator.base_noise([9])
    with torch.no_grad():
        ours = generator.decode(generator.denoise(noise, generator.encode_prompts(PROMPTS[:1]))).clamp(0, 1)
    torch.testing.assert_close(ours, pipeline_call(loaded, PROMPTS[:1], noise), rtol=0, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_a_card_is_the_folders_readme_and_no_part_of_the_model(generator, tmp_path):
    generator.save(tmp_path / "saved")
    plain = ModelFolder.open(tmp_path / "saved").fingerprint
    assert not (tmp_path / "saved" / "README.md").exists()
    generator.save(tmp_path / "saved", card="# Größe\n")
    assert (tmp_path / "saved" / "README.md").read_text(encoding="utf-8") == "# Größe\n"
    assert ModelFolder.open(tmp_path / "saved").fingerprint == plain


def test_parking_on_the_device_itself_changes_nothing(generator, batch):
    _, images, targets = batch
    generator.park(text=True, autoencoder=True)
    with torch.no_grad():
        assert torch.equal(generator.encode_images(images), targets)


def test_parked_parts_leave_and_are_asked_back_by_what_needs_them(tiny_turbo, batch):
    condition, images, targets = batch
    parked = load_generator(ModelFolder.open(tiny_turbo))
    unet, vae = parked.pipeline.unet, parked.pipeline.vae
    texts = [parked.pipeline.text_encoder, parked.pipeline.text_encoder_2]
    # A place that exists without a GPU, and that nothing returns from: asking back is then seen by its failure.
    parked.host = torch.device("meta")
    parked.park()
    assert not any(p.is_meta for part in (unet, vae, *texts) for p in part.parameters())
    parked.park(text=True)
    assert all(p.is_meta for part in texts for p in part.parameters())
    with torch.no_grad():
        assert torch.equal(parked.encode_images(images), targets)
        parked.denoise(parked.base_noise(list(range(8))), condition)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        parked.encode_prompts(PROMPTS)
    parked.park(autoencoder=True)
    assert all(p.is_meta for p in vae.parameters())
    for use in (lambda: parked.encode_images(images), lambda: parked.decode(targets)):
        with pytest.raises(NotImplementedError, match="meta tensor"):
            use()
    assert not any(p.is_meta for p in unet.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_parked_parts_return_to_the_gpu(tiny_turbo, batch):
    _, images, _ = batch
    one = load_generator(ModelFolder.open(tiny_turbo), "cuda")
    with torch.no_grad():
        before = one.encode_prompts(PROMPTS), one.decode(one.encode_images(images))
        one.park(text=True, autoencoder=True)
        assert {next(p.parameters()).device.type for p in (one.pipeline.text_encoder, one.pipeline.vae)} == {"cpu"}
        after = one.encode_prompts(PROMPTS), one.decode(one.encode_images(images))
    assert all(torch.equal(before[0].tensors[name], tensor) for name, tensor in after[0].tensors.items())
    torch.testing.assert_close(after[1], before[1])


def test_truncated_prompts_are_counted(generator):
    assert generator.count_truncated([PROMPTS[0], " ".join(["seven"] * 40)]) == 1


def test_gradient_checkpointing_computes_twice_and_changes_no_gradient(tiny_turbo, generator, batch):
    condition, _, _ = batch
    calls = {}
    gradients = []
    for name, one in (
        ("plain", generator),
        ("again", load_generator(ModelFolder.open(tiny_turbo), gradient_checkpointing=True)),
    ):
        calls[name] = 0

        def count(*_, name=name):
            calls[name] += 1

        hook = one.trainable.down_blocks[0].resnets[0].register_forward_pre_hook(count)
        noise = one.base_noise(list(range(8))).requires_grad_(True)
        one.denoise(noise, condition).square().mean().backward()
        hook.remove()
        gradients.append(noise.grad)
    assert calls == {"plain": 1, "again": 2}
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("keep_adapter", [False, True])
def test_half_precision_on_a_cpu_works_without_a_warning(keep_adapter, tiny_turbo, tmp_path, caplog):
    """diffusers' own way of moving a pipeline says that it cannot run; its log does not reach the root's."""
    adapted = load_generator(ModelFolder.open(tiny_turbo))
    add_lora(adapted.trainable, Lora(2, 2.0), seed=0)
    adapted.save(tmp_path / "lora")
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        generator = load_generator(ModelFolder.open(tmp_path / "lora"), dtype="float16", keep_adapter=keep_adapter)
        generator.park(text=True, autoencoder=True)
        with torch.no_grad():
            latents = generator.denoise(generator.base_noise([1, 2]), generator.encode_prompts(PROMPTS))
            again = generator.encode_images(generator.decode(latents))
        generator.save(tmp_path / "saved", single_file=True)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    assert generator.trainable.conv_in.weight.dtype == torch.float16
    assert again.isfinite().all()
    assert [record.getMessage() for record in caplog.records] == []


def test_a_path_is_enough_and_devices_and_dtypes_are_named(tiny_turbo, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    loaded = load_generator(str(tiny_turbo), "auto", torch.float16)
    assert loaded.loaded_fingerprint == ModelFolder.open(tiny_turbo).fingerprint
    assert (loaded.device.type, next(loaded.trainable.parameters()).dtype) == ("cpu", torch.float16)
    with pytest.raises(UserError, match="dtype 'fp16' is not known; accepted: float32, float16, bfloat16, auto"):
        load_generator(tiny_turbo, dtype="fp16")
    with pytest.raises(UserError, match="model folder nowhere does not exist"):
        load_generator("nowhere")
