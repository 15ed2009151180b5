"""Every kind of pipeline against diffusers' own call of it, float32."""

import inspect
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline

from benchmarks.flow_models import save_flux, save_sana_sprint
from benchmarks.flows import PROMPTS, own_latents, relative
from benchmarks.memory_real import parts
from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, lora_parameters
from ortho_core.generators.lora_config import AddedLora, Lora
from ortho_core.generators.lora_files import LORA_WEIGHTS
from ortho_core.generators.model_card import model_card
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.pipelines.kinds import ADAPTERS, adapter_of
from ortho_core.noise.seeded import seeded_normal
from tests.small_pipelines import save_stable_diffusion, save_stable_diffusion_xl

MAKERS = {
    "StableDiffusionPipeline": lambda turbo, folder: save_stable_diffusion(turbo, folder, timestep_spacing="trailing"),
    "StableDiffusionXLPipeline": lambda turbo, folder: save_stable_diffusion_xl(
        turbo, folder, timestep_spacing="trailing"
    ),
    "SanaSprintPipeline": lambda turbo, folder: save_sana_sprint(folder),
    "FluxPipeline": save_flux,
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tiny_turbo, tmp_path_factory):
    return MAKERS[request.param](tiny_turbo, tmp_path_factory.mktemp("kinds") / request.param)


@torch.no_grad()
def made(generator, noise):
    return generator.denoise(noise, generator.encode_prompts(PROMPTS))


def test_every_kind_is_tried():
    assert MAKERS.keys() == ADAPTERS.keys()


def test_latents_and_images_are_those_of_the_pipelines_own_call(folder):
    model = ModelFolder.open(folder)
    Y, X = model.image_size
    for opened in (model, model.at((Y + 32, X))):
        generator = load_generator(opened)
        noise = seeded_normal([3, 4, 5], generator.latent_shape)
        pipeline = DiffusionPipeline.from_pretrained(folder)
        latents = made(generator, noise)
        assert relative(latents, own_latents(pipeline, noise, generator.image_size)) <= 1e-4
        with torch.no_grad():
            images = generator.decode(latents).clamp(0, 1)
        torch.testing.assert_close(
            images, own_latents(pipeline, noise, generator.image_size, output_type="pt"), rtol=0, atol=1e-4
        )


def test_the_network_hears_the_prompt_and_the_noise(folder):
    generator = load_generator(folder)
    noise = seeded_normal([1, 1, 2], generator.latent_shape)
    one, other, third = made(generator, noise)
    assert not torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(one, third, atol=1e-3)
    x = noise[:1].requires_grad_(True)
    generator.denoise(x, generator.encode_prompts(PROMPTS[:1])).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


def test_encoded_images_are_what_decoding_turns_back(folder):
    """An untrained autoencoder is no inverse, but scale and shift are: `decode` undoes those of `encode_images`."""
    generator = load_generator(folder)
    images = torch.rand(2, 3, *generator.image_size)
    vae = generator.pipeline.vae
    with torch.no_grad():
        plain = generator.adapter.encode(vae, images * 2 - 1)
        torch.testing.assert_close(
            generator.decode(generator.encode_images(images)), vae.decode(plain, return_dict=False)[0] / 2 + 0.5
        )


def test_a_lora_is_read_by_diffusers_and_merged_the_same(folder, tmp_path):
    model = ModelFolder.open(folder)
    generator = load_generator(model)
    add_lora(generator.trainable, Lora(2, 4.0, model.adapter.lora_targets), seed=1)
    for p in lora_parameters(generator.trainable):
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7))
    noise = seeded_normal([3, 4, 5], generator.latent_shape)
    adapted = made(generator, noise)
    assert relative(adapted, made(load_generator(model), noise)) > 1e-2
    generator.save(tmp_path / "lora")
    for other in (
        load_generator(tmp_path / "lora"),
        load_generator(tmp_path / "lora", keep_adapter=True),
        load_generator(model.with_loras([AddedLora(file=tmp_path / "lora" / LORA_WEIGHTS)])),
    ):
        assert relative(made(other, noise), adapted) <= 1e-4
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path / "lora", weight_name=LORA_WEIGHTS)
    assert relative(own_latents(pipeline, noise, generator.image_size), adapted) <= 1e-4
    # Merged weights are saved as a whole model, which diffusers runs as well.
    load_generator(tmp_path / "lora").save(tmp_path / "merged")
    saved = DiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert relative(own_latents(saved, noise, generator.image_size), adapted) <= 1e-4


@pytest.mark.parametrize("lora", [False, True])
def test_the_code_of_its_model_card_makes_an_image(folder, tmp_path, lora):
    model = ModelFolder.open(folder)
    model = model.at((model.image_size[0] + 32, model.image_size[1]))
    generator = load_generator(model)
    if lora:
        add_lora(generator.trainable, Lora(2, 4.0, model.adapter.lora_targets), seed=1)
    about = {"facts": {}, "metrics": {}, "config": {}}
    generator.save(tmp_path / "saved", model_card("x", base="y", model=model, lora=lora, **about))
    card = (tmp_path / "saved" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("path/of/this/folder", str(tmp_path / "saved"))
    exec(code, names := {})
    assert names["image"].size == (model.image_size[1], model.image_size[0])
    assert ("ComfyUI" in card) == (lora and model.adapter.lora_elsewhere is not None)


def test_a_folder_in_shards_gives_the_same(folder, tmp_path):
    """As the hub has the large ones: each part in several files and an index."""
    generator = load_generator(folder)
    DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    model = ModelFolder.open(tmp_path / "shards")
    assert len(model.base.weights[model.adapter.network][""]) > 1
    noise = seeded_normal([3, 4, 5], generator.latent_shape)
    assert torch.equal(made(load_generator(model), noise), made(generator, noise))
    add_lora(generator.trainable, Lora(2, 4.0, model.adapter.lora_targets), seed=1)
    for p in lora_parameters(generator.trainable):
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7))
    generator.save(tmp_path / "lora")
    merged = load_generator(model.with_loras([AddedLora(file=tmp_path / "lora" / LORA_WEIGHTS)]))
    assert relative(made(merged, noise), made(generator, noise)) <= 1e-4


def test_a_packed_network_and_gradients_computed_twice(folder):
    model = ModelFolder.open(folder)
    noise = seeded_normal([3, 4, 5], model.latent_shape)
    exact = made(load_generator(model), noise)
    assert 0 < relative(made(load_generator(model, quantize="int8"), noise), exact) < 0.05
    twice = load_generator(model, gradient_checkpointing=True)
    twice.trainable.train()
    assert twice.network.is_gradient_checkpointing
    assert relative(made(twice, noise), exact) <= 1e-5


def test_its_memory_is_counted(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for part in parts(ModelFolder.open(folder), 4):
        assert part.ratio == pytest.approx(1, abs=0.1), part


def test_tiles_are_half_of_each_side(folder):
    generator = load_generator(folder)
    images = torch.rand(1, 3, *generator.image_size)
    with torch.no_grad():
        latents = generator.encode_images(images)
        whole = generator.decode(latents)
        generator.adapter.tile(generator.pipeline.vae, generator.image_size)
        calls = []
        generator.pipeline.vae.decoder.register_forward_hook(lambda _, args, out: calls.append(args[0].shape[-1]))
        tiled = generator.decode(latents)
    assert tiled.shape == whole.shape
    assert max(calls) == latents.shape[-1] // 2
    assert len(calls) >= 4


def test_an_adapter_is_one_short_file_that_needs_no_pytorch_to_describe_a_folder():
    for adapter in ADAPTERS.values():
        assert len(inspect.getsource(inspect.getmodule(adapter)).splitlines()) <= 200
    code = "import sys; import ortho_core.generators.pipelines.kinds; print({'torch', 'diffusers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_other_pipelines_are_refused_with_what_is_accepted():
    with pytest.raises(UserError, match=r"^dict is no known kind of pipeline; accepted: StableDiffusionPipeline, "):
        adapter_of({})


def test_embeddings_of_other_lengths_are_told_apart(tiny_turbo, tmp_path):
    """FLUX.1 schnell and models with a guidance embedding have the same text encoders and other numbers of tokens."""
    plain, guided = (
        save_flux(tiny_turbo, tmp_path / name, guidance_embeds=name == "guided") for name in ("plain", "guided")
    )
    for part in ("text_encoder", "text_encoder_2"):
        shutil.copytree(plain / part, guided / part, dirs_exist_ok=True)
    assert ModelFolder.open(plain).text_fingerprint != ModelFolder.open(guided).text_fingerprint


def test_the_guidance_scale_is_an_input_of_the_networks_that_have_it(tiny_turbo, tmp_path):
    folder = save_sana_sprint(tmp_path / "sana")
    noise = seeded_normal([3, 4, 5], (4, 8, 8))
    usual = made(load_generator(folder), noise)
    (folder / "one_step.json").write_text('{"guidance": 2.0}')
    generator = load_generator(folder)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert relative(made(generator, noise), own_latents(pipeline, noise, (32, 32), guidance_scale=2.0)) <= 1e-4
    assert relative(made(generator, noise), usual) > 1e-4
    generator.save(tmp_path / "saved")
    assert ModelFolder.open(tmp_path / "saved").recipe.guidance == 2.0
    assert "guidance_scale=2.0" in model_card(
        "x", base="y", model=ModelFolder.open(folder), lora=False, facts={}, metrics={}, config={}
    )
    other = save_flux(tiny_turbo, tmp_path / "flux")
    for content, said in (
        ('{"guidance": 2.0}', "guidance is 2, but the network has no input for it"),
        ('{"guidance": "x"}', "guidance is 'x'; accepted: a number, 0 or above"),
        ('{"guidance": true}', "guidance is True; accepted: a number, 0 or above"),
    ):
        (other / "one_step.json").write_text(content)
        with pytest.raises(UserError, match=said):
            ModelFolder.open(other)


def test_prompts_beyond_the_window_are_counted(folder):
    generator = load_generator(folder)
    assert generator.count_truncated(["a", "", "seven " * 400]) == 1
