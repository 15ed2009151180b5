"""`ortho generate`: which images it makes, and from which noise."""

import numpy as np
import torch
from PIL import Image

from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes
from rayjobs.cli import main


def test_generate_samples_at_the_base_noise_of_its_seeds(tiny_turbo, generator, tmp_path):
    argv = ["generate", "--model", str(tiny_turbo), "--prompt", "a red handwritten two on a black background"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--count", "2"]) == 0
    noise = generator.base_noise([noise_seed(0, "generate", i) for i in range(2)])
    with torch.no_grad():
        made = to_bytes(generator.decode(generator.denoise(noise, generator.encode_prompts([argv[4]] * 2))))
    for i, expected in enumerate(made):
        found = np.array(Image.open(tmp_path / "out" / f"{i:04d}.png")).transpose(2, 0, 1).astype(int)
        assert np.abs(found - expected.numpy()).max() <= 1


def test_generate_makes_the_same_images_for_any_count(tiny_turbo, tmp_path):
    argv = ["generate", "--model", str(tiny_turbo), "--prompt", "a red handwritten two on a black background"]
    assert main([*argv, "--count", "3", "--out", str(tmp_path / "a")]) == 0
    assert main([*argv, "--count", "2", "--batch-size", "1", "--out", str(tmp_path / "b")]) == 0
    for name in ("0000.png", "0001.png"):
        with Image.open(tmp_path / "a" / name) as a, Image.open(tmp_path / "b" / name) as b:
            pixels = [torch.tensor(list(x.tobytes()), dtype=torch.int32) for x in (a, b)]
        assert (pixels[0] - pixels[1]).abs().max() <= 1
    assert (tmp_path / "a" / "grid.png").is_file()
