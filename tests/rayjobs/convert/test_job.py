"""`ortho convert`: the files it writes, as diffusers reads them, and what it refuses."""

import os
import shutil

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, lora_parameters
from ortho_core.generators.lora_config import AddedLora, Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import converted_from
from rayjobs.cli import main
from tests.rayjobs.train.training import diffusers_images, images
from tests.small_pipelines import save_stable_diffusion_xl


@pytest.fixture(scope="module")
def base(tiny_turbo, tmp_path_factory):
    return save_stable_diffusion_xl(
        tiny_turbo, tmp_path_factory.mktemp("models") / "tiny-sdxl", timestep_spacing="trailing"
    )


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """A LoRA folder, and the images of the generator that wrote it."""
    generator = load_generator(ModelFolder.open(base))
    add_lora(generator.trainable, Lora(4, 10.0), seed=3)
    with torch.no_grad():
        for parameter in lora_parameters(generator.trainable):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    folder = tmp_path_factory.mktemp("lora") / "checkpoint-final"
    generator.save(folder)
    return folder, images(generator)


@pytest.fixture
def style(base, tmp_path):
    """A LoRA of somebody's, as diffusers writes them: on the UNet and on a text encoder."""
    draw, tensors = torch.Generator().manual_seed(2), {}
    for layer, out, enter in (
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v", 24, 24),
        ("text_encoder.text_model.encoder.layers.0.self_attn.v_proj", 16, 16),
    ):
        tensors[f"{layer}.lora_A.weight"] = torch.randn(4, enter, generator=draw)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(out, 4, generator=draw)
    save_file(tensors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def read_single(file, base):
    return StableDiffusionXLPipeline.from_single_file(str(file), config=str(base), local_files_only=True)


def test_a_pipelines_folder_becomes_one_checkpoint_beside_it(base, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.symlink_to(base)
    assert main(["convert", str(folder)]) == 0
    file = tmp_path / "mine.safetensors"
    said = capsys.readouterr().err
    assert f"{file}, " in said
    assert "copy it to ComfyUI/models/checkpoints, or models/Stable-diffusion of Forge and A1111" in said
    expected = DiffusionPipeline.from_pretrained(base).unet.state_dict()
    assert all(
        torch.equal(value, expected[name].half().float())
        for name, value in read_single(file, base).unet.state_dict().items()
    )
    first = file.read_bytes()
    assert main(["convert", str(folder)]) == 0
    assert file.read_bytes() == first


def test_a_lora_folder_becomes_kohyas_lora_or_a_checkpoint_with_it_merged_in(base, lora, tmp_path):
    folder, expected = lora
    out = tmp_path / "loras" / "mine.safetensors"
    assert main(["convert", "--model", str(folder), "--out", str(out), "--dtype", "float32"]) == 0
    pipeline = DiffusionPipeline.from_pretrained(base)
    before = diffusers_images(pipeline)
    pipeline.load_lora_weights(out)
    assert (before - expected).abs().max() > 0.05
    torch.testing.assert_close(diffusers_images(pipeline), expected, rtol=0, atol=1e-5)
    assert main(["convert", str(folder), "--merge", "--out", str(out), "--dtype", "float32"]) == 0
    torch.testing.assert_close(diffusers_images(read_single(out, base)), expected, rtol=0, atol=1e-5)


def test_with_loras_it_becomes_a_folder_that_has_them(base, style, tmp_path, capsys):
    added = ModelFolder.open(base).with_loras([AddedLora(file=style, weight=0.5)])
    expected = images(load_generator(added))
    assert (images(load_generator(ModelFolder.open(base))) - expected).abs().max() > 0.01
    out = tmp_path / "styled-v1.5"
    argv = ["convert", str(base), "--lora", f"{style}:0.5", "--dtype", "float32", "--out", str(out)]
    for _ in range(2):  # again, over what it wrote
        assert main(argv) == 0
    assert "a diffusers folder; use it as --model of every verb" in capsys.readouterr().err
    torch.testing.assert_close(diffusers_images(DiffusionPipeline.from_pretrained(out)), expected, rtol=0, atol=1e-5)
    made = ModelFolder.open(out)
    assert converted_from(out, made.fingerprint) == added.fingerprint
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["base_model"], "base_model_relation" in head) == (base.name, False)
    assert f"| with | {style.parent.name}/{style.name}:0.5 |" in text
    assert f"# {base.name} with {style.parent.name}/{style.name}\n" in text
    assert str(tmp_path) not in text
    assert "put together with Ortho" in text
    assert "## Metrics" not in text
    assert main([*argv[:-1], str(tmp_path / "one.safetensors")]) == 0
    torch.testing.assert_close(
        diffusers_images(read_single(tmp_path / "one.safetensors", base)), expected, rtol=0, atol=1e-5
    )


def test_a_checkpoint_and_a_lora_folder_become_folders_too(base, lora, style, tmp_path):
    file, out = tmp_path / "mine.safetensors", tmp_path / "out"
    assert main(["convert", str(base), "--out", str(file), "--dtype", "float32"]) == 0
    shutil.copytree(base, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
    assert main(["convert", str(file), "--out", str(out)]) == 0
    made = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in made.values()} == {torch.float16}
    expected = DiffusionPipeline.from_pretrained(base).unet.state_dict()
    assert all(torch.equal(value, expected[name].half()) for name, value in made.items())
    argv = ["convert", str(lora[0]), "--merge", "--lora", str(style), "--out", str(out), "--dtype", "float32"]
    assert main(argv) == 0
    both = ModelFolder.open(lora[0]).with_loras([AddedLora(file=style)])
    torch.testing.assert_close(
        images(load_generator(ModelFolder.open(out))), images(load_generator(both)), rtol=0, atol=1e-5
    )


def test_a_folder_of_altered_weights_is_no_longer_what_it_was_converted_from(base, tmp_path):
    out = tmp_path / "out"
    assert main(["convert", str(base), "--out", str(out)]) == 0
    assert converted_from(out, ModelFolder.open(out).fingerprint) == ModelFolder.open(base).fingerprint
    file = out / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    assert converted_from(out, ModelFolder.open(out).fingerprint) is None


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_file_is_for_whom_the_umask_lets_read(umask, mode, lora, tmp_path):
    before = os.umask(umask)
    try:
        assert main(["convert", str(lora[0]), "--out", str(tmp_path / "a.safetensors"), "--dtype", "bfloat16"]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode
    kinds = {
        value.dtype for name, value in load_file(tmp_path / "a.safetensors").items() if not name.endswith(".alpha")
    }
    assert kinds == {torch.bfloat16}


def test_a_dry_run_says_what_would_be_written(lora, base, capsys):
    folder = lora[0]
    assert main(["convert", str(folder), "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["written"] == "LoRA in kohya's format"
    assert said["out"] == f"{folder}.safetensors"
    assert main(["convert", str(base), "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["written"] == "checkpoint with the original tensor names"
    assert main(["convert", str(base), "--dry-run", "--out", str(folder.parent / "whole")]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["written"] == "diffusers folder"
    assert os.listdir(folder.parent) == [folder.name]


def test_what_cannot_be_converted_or_would_replace_a_file_of_somebodys_is_refused(base, lora, style, tmp_path, capsys):
    theirs = tmp_path / "theirs" / "theirs.safetensors"
    theirs.parent.mkdir()
    save_file({"a": torch.zeros(2)}, theirs)
    config = ClassConfig(classes=("one", "two"), noise_shape=(8, 1, 1), image_shape=(1, 8, 8))
    ClassGenerator(config, ClassNetwork(config)).save(tmp_path / "classes")
    for argv, says in (
        ([base, "--out", theirs], "theirs.safetensors exists and was not written by ortho, so it is not replaced"),
        ([base, "--out", tmp_path / "a.ckpt"], "accepted: a name that ends in .safetensors"),
        ([base, "--out", base / "a.safetensors"], "lies in --model"),
        ([base, "--merge"], f"--merge: {base} is not a LoRA folder"),
        ([base, "--lora", style], "--lora needs --out FOLDER (or NAME.safetensors)"),
        ([base, "--lora", style, "--out", theirs.parent], "exists and was not written by ortho"),
        ([base, "--out", tmp_path / "a.bin"], "a name that ends in .safetensors, or a folder"),
        ([lora[0], "--out", tmp_path / "a"], "is a LoRA folder: add --merge to write its base model"),
        ([lora[0], "--lora", style, "--out", tmp_path / "a.safetensors"], "is a LoRA folder: add --merge"),
        ([tmp_path / "classes"], "is a class-conditional model, which other programs cannot load"),
        ([tmp_path / "nothing"], "does not exist"),
    ):
        assert main(["convert", *map(str, argv)]) == 1
        last = capsys.readouterr().err
        assert says in last
        assert last.count("\n") == 1
    assert load_file(theirs).keys() == {"a"}
