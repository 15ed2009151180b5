"""Models as options name them: those of the catalogue, those with LoRAs, and what is said of their files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from rayjobs.cli import main
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.evaluate.job import open_models
from rayjobs.verb import models
from rayjobs.verb.models import open_model, say_counting

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def lora(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({f"{LAYER}.lora_A.weight": torch.ones(1, 96), f"{LAYER}.lora_B.weight": torch.ones(96, 1)}, file)
    return file


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (
            "stabilityai/sdxl-turbo",
            "`ortho download --only sdxl-turbo` downloads it, then give --model models/sdxl-turbo",
        ),
        ("StabilityAI/SD-Turbo", "--only sd-turbo` downloads it"),
        ("models/sdxl-turbo", "does not exist: `ortho download --only sdxl-turbo` downloads it"),
        (
            "elsewhere/sdxl-turbo",
            "--only sdxl-turbo --out elsewhere` downloads it, then give --model elsewhere/sdxl-turbo",
        ),
        ("sdxl-turbo", "--only sdxl-turbo` downloads it, then give --model models/sdxl-turbo"),
        ("models/hyper-sdxl-1step", "--only hyper-sdxl` downloads it, then give --model models/hyper-sdxl-1step"),
        ("ByteDance/Hyper-SD", "--only hyper-sd15` .* or .*--only hyper-sdxl` downloads it"),
        ("models/mine", r"models/mine does not exist \(give a local folder"),
        ("someone/mine", r"someone/mine does not exist \(give"),
    ],
)
def test_a_model_that_is_not_here_is_answered_by_what_brings_it(given, answer, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--model", given, "--prompt", "x", "--out", "o", "--dry-run"]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(AssertionError, match=answer):
        raise AssertionError(said)


def test_a_model_of_the_hub_that_is_here_is_pointed_to(tiny_turbo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_turbo, tmp_path / "models" / "sdxl-turbo")
    with pytest.raises(UserError, match="it is in models/sdxl-turbo, give --model models/sdxl-turbo"):
        open_model(tmp_path / "stabilityai" / "sdxl-turbo")


def test_the_files_that_are_taken_are_said_in_one_line(tiny_turbo, tmp_path, capfd):
    folder = shutil.copytree(tiny_turbo, tmp_path / "turbo")
    open_model(folder, "float16")
    assert capfd.readouterr().err == ""
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = {name: value.half() for name, value in load_file(whole).items()}
    save_file(half, whole.with_suffix(".fp16.safetensors"))
    open_model(folder, "float16")
    said = capfd.readouterr().err
    assert said.endswith("fp16 files of unet (--dtype float16)\n")
    assert said.count("\n") == 1


def test_generate_adds_loras_to_the_model_and_to_its_plan(lora, tiny_turbo, tmp_path, capfd):
    def made(name, *more):
        out = tmp_path / name
        options = ["--model", tiny_turbo, "--prompt", "a green handwritten two", "--count", "1", "--out", out, *more]
        assert main(["generate", *map(str, options)]) == 0
        return next(out.glob("*0*.png")).read_bytes(), json.loads((out / "plan.json").read_text())["model_fingerprint"]

    plain, weak, none = made("a"), made("b", "--lora", f"{lora}:0.1"), made("c", "--lora", f"{lora}:0")
    assert len({plain[1], weak[1], none[1]}) == 3
    assert plain[0] != weak[0]
    options = ["--model", tiny_turbo, "--prompt", "x", "--out", tmp_path / "d", "--lora", tmp_path / "no"]
    assert main(["generate", *map(str, options)]) == 1
    assert f"--lora {tmp_path}/no does not exist" in capfd.readouterr().err


def test_evaluate_adds_loras_to_all_models_or_to_one(lora, tiny_turbo, digits, tmp_path):
    def fingerprints(spelled):
        job = EvaluateJob.model_validate(
            {"model": f"base={tiny_turbo},tuned={tiny_turbo}", "pairs": str(digits), "out": tmp_path, "lora": spelled}
        )
        return [each.fingerprint for each in open_models(job).values()]

    plain = fingerprints({})[0]
    added = fingerprints(f"{lora}:0.5")
    assert added[0] == added[1] != plain
    assert fingerprints(f"tuned={lora}:0.5") == [plain, added[0]]
    with pytest.raises(UserError, match="--lora names other; accepted: the models base, tuned"):
        fingerprints(f"other={lora}")


def test_a_large_model_is_said_to_take_a_while_to_count(tiny_turbo, monkeypatch, capfd):
    model = open_model(tiny_turbo)
    say_counting(model)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(models, "LARGE", model.weight_bytes - 1)
    say_counting(model)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"memory: counting what {model.path} needs, ")
