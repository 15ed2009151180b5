"""`ortho generate`: which images it makes, from which noise, and how it goes on."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pictures import to_bytes
from rayjobs.cli import main

PROMPTS = [f"a {colour} handwritten two on a black background" for colour in ("red", "green", "blue")]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return file


def pixels(file):
    with Image.open(file) as picture:
        return np.array(picture).transpose(2, 0, 1).astype(int)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(generator, prompt, seeds):
    with torch.no_grad():
        condition = generator.encode_prompts([prompt] * len(seeds))
        return to_bytes(generator.decode(generator.denoise(generator.base_noise(seeds), condition))).int().numpy()


def test_generate_samples_at_the_base_noise_of_its_seeds(tiny_turbo, generator, tmp_path):
    argv = ["generate", "--model", str(tiny_turbo), "--prompt", PROMPTS[0], "--count", "2"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    made = expected(generator, PROMPTS[0], [noise_seed(0, "generate", i) for i in range(2)])
    for i, image in enumerate(made):
        assert np.abs(pixels(tmp_path / "out" / f"{i:04d}.png") - image).max() <= 1


def test_images_have_the_size_that_was_requested(tiny_turbo, tmp_path, capsys):
    argv = [
        "generate",
        "--model",
        str(tiny_turbo),
        "--prompt",
        PROMPTS[0],
        "--count",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*argv, "--size", "40x24"]) == 0
    assert pixels(tmp_path / "out" / "0000.png").shape == (3, 24, 40)
    assert main(argv) == 1
    assert "size was '40x24', now None" in capsys.readouterr().err


def test_generate_makes_the_same_images_for_any_count(tiny_turbo, tmp_path):
    argv = ["generate", "--model", str(tiny_turbo), "--prompt", PROMPTS[0]]
    assert main([*argv, "--count", "3", "--out", str(tmp_path / "a")]) == 0
    assert main([*argv, "--count", "2", "--batch-size", "1", "--out", str(tmp_path / "b")]) == 0
    for name in ("0000.png", "0001.png"):
        assert np.abs(pixels(tmp_path / "a" / name) - pixels(tmp_path / "b" / name)).max() <= 1
    assert pixels(tmp_path / "a" / "grid.png").shape == (3, 6 + 256 + 6, 3 * (256 + 6) + 6)


def test_images_of_a_file_depend_on_their_numbers_alone_and_say_how_they_were_made(
    tiny_turbo, generator, prompts, tmp_path
):
    argv = ["generate", "--model", str(tiny_turbo), "--prompts", str(prompts), "--seed", "5"]
    assert main([*argv, "--out", str(tmp_path / "a"), "--images-per-prompt", "2", "--batch-size", "4"]) == 0
    assert main([*argv, "--out", str(tmp_path / "b")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a" / "pairs.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [prompt for prompt in PROMPTS for _ in range(2)]
    for number, line in enumerate(lines):
        seed = noise_seed(5, "generate", number // 2, number % 2)
        assert line == {
            "prompt": line["prompt"],
            "image": f"{number // 2:05d}_{number % 2:04d}.png",
            "noise_seed": seed,
        }
        file = tmp_path / "a" / line["image"]
        with Image.open(file) as picture:
            assert (picture.text["prompt"], picture.text["noise_seed"]) == (line["prompt"], str(seed))
        assert np.abs(pixels(file) - expected(generator, line["prompt"], [seed])[0]).max() <= 1
        if number % 2 == 0:
            assert np.abs(pixels(file) - pixels(tmp_path / "b" / line["image"])).max() <= 1
    pairs = PairSet(tmp_path / "a" / "pairs.jsonl")
    assert [pair.prompt for shard in pairs.shards(8) for pair in pairs.read(shard)] == [
        line["prompt"] for line in lines
    ]


def test_a_killed_run_goes_on_to_the_same_files(tiny_turbo, prompts, tmp_path, left_aside):
    argv = ["generate", "--model", str(tiny_turbo), "--prompts", str(prompts), "--images-per-prompt", "60"]
    argv += ["--batch-size", "7", "--out"]
    assert main([*argv, str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "rayjobs.generate", *argv[1:], str(out)])
    try:
        while not len([*out.glob("*.png")]) > 20:
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert not (out / "pairs.jsonl").exists()
    (out / "00000_0003.png").unlink()
    left_aside(out / "00000_0003.png")
    kept = {name: (out / name).stat().st_mtime_ns for name in ("00000_0000.png", "00000_0007.png")}
    assert main([*argv, str(out)]) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_a_finished_run_is_not_made_again_and_another_is_refused(tiny_turbo, prompts, tmp_path, capsys):
    argv = ["generate", "--model", str(tiny_turbo), "--out", str(tmp_path / "out"), "--prompts"]
    assert main([*argv, str(prompts)]) == 0
    capsys.readouterr()
    assert main([*argv, str(prompts), "--batch-size", "2"]) == 0
    said = capsys.readouterr().err
    assert "images/s" not in said
    assert f"3 images of 3 prompts in {tmp_path / 'out'}; grid.png" in said
    assert f"next: ortho look {tmp_path / 'out'}/pairs.jsonl" in said
    prompts.write_text("\n".join(reversed(PROMPTS)))
    assert main([*argv, str(prompts)]) == 1
    assert "holds the output of another run" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat.png").write_bytes(b"")
    assert main([*argv[:-2], str(tmp_path / "mine"), "--prompt", "a cat"]) == 1
    assert "was not made by `ortho generate`" in capsys.readouterr().err


def test_out_of_memory_halves_the_batch(tiny_turbo, prompts, tmp_path, monkeypatch, capsys):
    usual, sizes = DiffusersGenerator.denoise, []

    def short(self, noise, condition):
        sizes.append(len(noise))
        if len(noise) > least:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return usual(self, noise, condition)

    monkeypatch.setattr(DiffusersGenerator, "denoise", short)
    argv = ["generate", "--model", str(tiny_turbo), "--prompts", str(prompts), "--images-per-prompt", "3"]
    least = 2
    assert main([*argv, "--batch-size", "8", "--out", str(tmp_path / "a")]) == 0
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert len([*(tmp_path / "a").glob("0*.png")]) == 9
    least = 0
    assert main([*argv, "--out", str(tmp_path / "b")]) == 1
    assert "compute on the CPU (--device cpu)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --prompt TEXT or --prompts FILE, and not both"),
        (["--prompt", "a", "--prompts", "b.txt"], "and not both"),
        (["--prompt", "a", "--layout", "geneval"], "with --prompt use --count"),
        (["--prompts", "b.txt", "--count", "2"], "with --prompts use --images-per-prompt"),
        (
            ["--prompts", "b.txt", "--layout", "hpsv2", "--images-per-prompt", "2"],
            "hpsv2 accepts only one image per prompt",
        ),
        (["--prompts", "missing.txt"], "prompts file missing.txt: No such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tiny_turbo, tmp_path, capsys, options, says):
    assert main(["generate", "--model", str(tiny_turbo), "--out", str(tmp_path / "out"), *options]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
