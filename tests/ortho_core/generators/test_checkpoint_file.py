"""Single-file checkpoints: the same model as the folder they were written from, whole without any other file, or refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from ortho_core.errors import UserError
from ortho_core.generators.checkpoint_file import BUILT_IN, FAMILIES, LATENT, clip_vocabulary
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from tests.ortho_core.generators.original_names import single_file

PROMPTS = ["a green handwritten seven on a black background"]


def made(generator):
    with torch.no_grad():
        return generator.decode(generator.denoise(generator.base_noise([1]), generator.encode_prompts(PROMPTS)))


def tensors_of(file):
    """Copies: the file itself, mapped into memory, is to be written again."""
    return {name: value.clone() for name, value in load_file(file).items()}


@pytest.fixture
def checkpoint(tiny_turbo, tmp_path):
    return single_file(tiny_turbo, tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("kind", ["xl", "one"])
def test_a_checkpoint_is_the_model_of_the_folder_it_was_written_from(kind, tiny_turbo, stable_diffusion, tmp_path):
    folder = tiny_turbo if kind == "xl" else stable_diffusion
    file = single_file(folder, tmp_path / "tiny.safetensors")
    opened, theirs = ModelFolder.open(file), ModelFolder.open(folder)
    assert (opened.kind, opened.latent_shape, opened.image_size) == (
        theirs.kind,
        theirs.latent_shape,
        theirs.image_size,
    )
    assert opened.noise_scale == theirs.noise_scale
    assert opened.files_used("float32") == ""
    torch.testing.assert_close(made(load_generator(opened)), made(load_generator(theirs)), rtol=0, atol=1e-5)
    before = opened.fingerprint
    (tmp_path / "tiny" / "README.md").write_text("another")
    assert ModelFolder.open(file).fingerprint == before
    tensors = tensors_of(file)
    tensors[LATENT][0] += 1
    save_file(tensors, file)
    assert ModelFolder.open(file).fingerprint != before


def test_half_precision_computes_in_what_was_asked_for(tiny_turbo, tmp_path):
    file = single_file(tiny_turbo, tmp_path / "tiny.safetensors", torch.float16)
    loaded = load_generator(ModelFolder.open(file), dtype="bfloat16")
    assert loaded.pipeline.unet.dtype == loaded.pipeline.text_encoder_2.dtype == torch.bfloat16
    assert loaded.pipeline.vae.dtype == torch.float32
    assert made(loaded).isfinite().all()


def test_it_is_saved_as_a_folder_that_is_the_same_model(checkpoint, tmp_path):
    loaded = load_generator(ModelFolder.open(checkpoint))
    loaded.save(tmp_path / "saved")
    assert torch.equal(made(load_generator(ModelFolder.open(tmp_path / "saved"))), made(loaded))


def test_configurations_are_those_of_the_pipeline_it_lies_in(checkpoint, tiny_turbo, tmp_path):
    shutil.copytree(tiny_turbo, tmp_path / "turbo")
    inside = shutil.move(checkpoint, tmp_path / "turbo" / "turbo.safetensors")
    assert ModelFolder.open(inside).latent_shape == (4, 8, 8)


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: family.name)
def test_the_built_in_configurations_are_of_the_published_networks(family):
    from diffusers import UNet2DConditionModel

    folder = FAMILIES / family.name
    index = json.loads((folder / "model_index.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    # Parameters of the published UNets: SDXL 2.57, SD 1.5 0.86, SD 2.1 0.87 billion.
    billions = {"sdxl": 2.567, "sd1": 0.860, "sd2": 0.866}[family.name]
    assert sum(p.numel() for p in unet.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert index["_class_name"] == ("StableDiffusionXLPipeline" if family.name == "sdxl" else "StableDiffusionPipeline")


def test_the_built_in_vocabulary_is_clips():
    vocabulary, merges = clip_vocabulary()
    assert len(vocabulary) == 49408
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    # As OpenAI's own tokenizer numbers them.
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    open_clip = pytest.importorskip("open_clip")
    for text in ("a photo of a cat, 8k; naïve café!", "It's 1234 — a RED \U0001f600 fox's den", "the the  the\n\tthe"):
        theirs = [n for n in open_clip.get_tokenizer("ViT-L-14")([text])[0].tolist() if n]
        assert tokenizer(text).input_ids == theirs


def refused(file, says):
    with pytest.raises(UserError, match=says) as caught:
        ModelFolder.open(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused_in_one_line(checkpoint, tiny_turbo, tmp_path):
    whole, tensors = checkpoint.read_bytes(), tensors_of(checkpoint)
    for content, says in (
        (whole[:-100], "is broken"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs"),
        (b"", "is empty"),
    ):
        checkpoint.write_bytes(content)
        refused(checkpoint, says)
    for changed, says in (
        ({k: v for k, v in tensors.items() if "first_stage" not in k}, "has no vae"),
        ({k: v for k, v in tensors.items() if "conditioner" not in k}, "has no text_encoder"),
        (tensors | {LATENT: torch.zeros(48, 9, 3, 3)}, "has 9 input channels, like models for inpainting"),
        (
            {"lora_unet_x.lora_down.weight": torch.zeros(1)},
            "is a LoRA: give the model .* to --model, and this file to --lora",
        ),
        (
            load_file(tiny_turbo / "unet" / "diffusion_pytorch_model.safetensors"),
            "not a checkpoint of Stable Diffusion",
        ),
    ):
        save_file(changed, checkpoint)
        refused(checkpoint, says)
    save_file(tensors, checkpoint)
    shutil.rmtree(checkpoint.with_suffix(""))
    refused(checkpoint, f"has no built-in configurations .*: put a diffusers folder .* as {tmp_path}/tiny")
    refused(tmp_path, "give a checkpoint's path to --model")
    (tmp_path / "old.ckpt").write_bytes(whole)
    refused(tmp_path / "old.ckpt", r"is a \.ckpt file; accepted")


def test_weights_of_another_shape_than_the_configurations_are_refused(checkpoint):
    file = checkpoint.with_suffix("") / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cross_attention_dim": 32}))
    with pytest.raises(UserError, match=r"checkpoint .*tiny\.safetensors does not load as StableDiffusionXLPipeline"):
        load_generator(ModelFolder.open(checkpoint))
