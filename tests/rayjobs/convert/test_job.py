"""`ortho convert`: the files it writes, as diffusers reads them, and what it refuses."""

import os

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, lora_parameters
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
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
    assert yaml.safe_load(capsys.readouterr().out)["written"] == "checkpoint in the original names"
    assert os.listdir(folder.parent) == [folder.name]


def test_what_cannot_be_converted_or_would_replace_a_file_of_somebodys_is_refused(base, tmp_path, capsys):
    theirs = tmp_path / "theirs.safetensors"
    save_file({"a": torch.zeros(2)}, theirs)
    config = ClassConfig(classes=("one", "two"), noise_shape=(8, 1, 1), image_shape=(1, 8, 8))
    ClassGenerator(config, ClassNetwork(config)).save(tmp_path / "classes")
    for argv, says in (
        ([base, "--out", theirs], "theirs.safetensors is there, and was not written by ortho: it would be replaced"),
        ([base, "--out", tmp_path / "a.ckpt"], "accepted: a name that ends in .safetensors"),
        ([base, "--out", base / "a.safetensors"], "lies in --model"),
        ([base, "--merge"], f"--merge: {base} is no LoRA folder"),
        ([tmp_path / "classes"], "is class-conditional, which other programs do not load"),
        ([tmp_path / "nothing"], "does not exist"),
    ):
        assert main(["convert", *map(str, argv)]) == 1
        last = capsys.readouterr().err
        assert says in last
        assert last.count("\n") == 1
    assert load_file(theirs).keys() == {"a"}
