"""`ortho invert`: what it leaves of one image, and in whose folders."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from ortho_core.estep.candidates import candidate_seeds
from ortho_core.noise.rotation import rotate
from ortho_core.noise.seeded import noise_seed, seeded_normal
from rayjobs.cli import main


def test_invert_leaves_pictures_curves_and_a_noise_that_reproduces_its_loss(
    tiny_turbo, digits, tmp_path, generator, capsys
):
    image, out = digits / "images" / "0000.png", tmp_path / "inverted"
    prompt = "a red handwritten three on a white background"
    argv = ["invert", "--prompt", prompt, "--target-image", str(image), "--model", str(tiny_turbo), "--out", str(out)]
    assert main([*argv, "--steps", "6"]) == 0
    assert "after 6 evaluations" in capsys.readouterr().err
    pictures = {"target", "base_noise", "assigned_noise", "comparison", "loss_history"}
    pictures |= {"orthogonal_gaussian_init", "orthogonal_gaussian_final"}
    assert pictures <= {p.stem for p in out.glob("*.png")}
    meta = json.loads((out / "meta.json").read_text())
    assert meta["loss"] == min(meta["history"]["total"]) < meta["initial_loss"] == meta["history"]["total"][0]
    tensors = load_file(out / "best_input_noise.safetensors")
    base = seeded_normal([noise_seed(0, "0000")], generator.latent_shape)
    assert torch.equal(tensors["base_noise"], base)
    torch.testing.assert_close(tensors["noise"], rotate(base, tensors["skew"], 2), rtol=0, atol=1e-5)
    with torch.no_grad():
        latents = generator.denoise(tensors["noise"], generator.encode_prompts([prompt]))
    assert float((latents - tensors["target_latent"]).square().mean()) == pytest.approx(meta["loss"], rel=1e-3)
    # The same folder again is replaced, and starts from the noise that was chosen.
    assert main([*argv, "--steps", "1", "--candidates", "8", "--seed", "1"]) == 0
    chosen, tensors = (json.loads((out / "meta.json").read_text()), load_file(out / "best_input_noise.safetensors"))
    assert chosen["noise_seed"] in candidate_seeds(noise_seed(1, "0000"), 8)[1:]
    assert chosen["candidate_forwards"] == 8
    assert torch.equal(tensors["base_noise"], seeded_normal([chosen["noise_seed"]], generator.latent_shape))
    torch.testing.assert_close(tensors["noise"], tensors["base_noise"], rtol=0, atol=1e-2)
    assert main([*argv[:-1], str(digits), "--steps", "2"]) == 1  # somebody else's folder is not
    assert "not made by `ortho invert`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--max-image-pixels=1023", r"0000\.png: 32×32 exceeds 1023 pixels \(--max-image-pixels raises the limit\)$"),
        ("--max-image-bytes=10", r"it has \d+ bytes; accepted: 10 \(--max-image-bytes raises the limit\)$"),
    ],
)
def test_an_image_that_costs_too_much_is_refused_with_the_option_for_it(
    option, says, tiny_turbo, digits, tmp_path, capsys
):
    argv = ["invert", "--prompt", "a", "--model", str(tiny_turbo), "--out", str(tmp_path / "out")]
    assert main([*argv, "--target-image", str(digits / "images" / "0000.png"), option]) == 1
    assert re.search(says, capsys.readouterr().err.strip())
