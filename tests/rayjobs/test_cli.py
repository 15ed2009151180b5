"""The command: its exit codes, and the verbs that need no cluster."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ortho_core.estep.candidates import candidate_seeds
from ortho_core.evaluation import to_bytes
from ortho_core.noise.rotation import rotate
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.records.assignments import Assignments
from rayjobs.cli import main
from rayjobs.verb.table import VERBS


def test_without_a_verb_and_with_help_it_lists_them(capsys):
    assert main([]) == 1
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert "--out" in (text := capsys.readouterr().out) or "--work-dir" in text


def test_faults_are_one_line_and_exit_code_1(capsys, tmp_path):
    for argv in (
        ["asign"],
        ["assign", "--step", "3"],
        ["generate", "--model", str(tmp_path), "--prompt", "x", "--out", "y"],
    ):
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"ortho {argv[0]}: ")
        assert error.count("\n") == 1


def test_dry_run_and_print_config_are_yaml_and_write_nothing(capsys, digits, tiny_turbo, tmp_path):
    argv = ["em", "--pairs", str(digits), "--model", str(tiny_turbo), "--work-dir", str(tmp_path / "out")]
    assert main([*argv, "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["rows"], said["evaluations_of_the_e_steps"]) == (512, 2 * 512 * 12)
    argv += ["--assign.workers", "2:8", "--assign.node-labels", "zone=a,disk=ssd"]
    assert main([*argv, "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["assign"]["patch_size"], config["assign"]["workers"]) == (2, "2:8")
    assert config["assign"]["node_labels"] == {"zone": "a", "disk": "ssd"}
    for workers in ("0:2", "3:2", "many"):
        assert main([*argv, "--assign.workers", workers]) == 1
        assert "a number of workers, LEAST:MOST, or 0 for none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_can_be_described_without_being_done(capsys, assigned, tiny_turbo, tmp_path):
    argv = ["train", "--assignments", str(assigned[1]), "--model", str(tiny_turbo), "--out", str(tmp_path / "out")]
    argv += ["--lora-targets", "to_q,to_k", "--lora-rank", "2", "--epochs", "3", "--batch-size", "12"]
    assert main([*argv, "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["rows"], said["updates"], said["config"]["lora_targets"]) == (24, 6, ["to_q", "to_k"])
    assert main([*argv, "--print-config"]) == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", str(tmp_path / "job.yaml"), "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == said
    assert main([*argv, "--batch-size", "7", "--num-workers", "2", "--dry-run"]) == 1
    assert capsys.readouterr().err == "ortho train: --batch-size: 7 does not divide among 2 workers\n"
    assert not (tmp_path / "out").exists()


def test_generate_around_assignments_adds_their_mean_noise(assigned, tiny_turbo, generator, tmp_path, capsys):
    argv = ["generate", "--model", str(tiny_turbo), "--prompt", "a red handwritten two on a black background"]
    assert main([*argv, "--out", str(tmp_path / "out"), "--count", "2", "--around", str(assigned[1])]) == 0
    every = Assignments(assigned[1]).noise(range(24), generator.latent_shape)
    noise = generator.base_noise([noise_seed(0, "generate", i) for i in range(2)]) + every.mean(0)
    with torch.no_grad():
        made = to_bytes(generator.decode(generator.denoise(noise, generator.encode_prompts([argv[4]] * 2))))
    for i, expected in enumerate(made):
        found = np.array(Image.open(tmp_path / "out" / f"{i:04d}.png")).transpose(2, 0, 1).astype(int)
        assert np.abs(found - expected.numpy()).max() <= 1
    assert main([*argv, "--out", str(tmp_path / "none"), "--around", str(tmp_path)]) == 1
    assert "holds no assignments" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_generate_makes_the_same_images_for_any_count(tiny_turbo, tmp_path):
    argv = ["generate", "--model", str(tiny_turbo), "--prompt", "a red handwritten two on a black background"]
    assert main([*argv, "--count", "3", "--out", str(tmp_path / "a")]) == 0
    assert main([*argv, "--count", "2", "--batch-size", "1", "--out", str(tmp_path / "b")]) == 0
    for name in ("0000.png", "0001.png"):
        with Image.open(tmp_path / "a" / name) as a, Image.open(tmp_path / "b" / name) as b:
            pixels = [torch.tensor(list(x.tobytes()), dtype=torch.int32) for x in (a, b)]
        assert (pixels[0] - pixels[1]).abs().max() <= 1
    assert (tmp_path / "a" / "grid.png").is_file()


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


def test_verify_noise_passes_and_writes_its_statistics(tmp_path, capsys):
    assert (
        main(["verify-noise", "--size", "16", "--num-samples", "32", "--patch-size", "4", "--out", str(tmp_path)]) == 0
    )
    assert capsys.readouterr().err.count(": Gaussian") == 4
    content = json.loads((tmp_path / "verify_noise.json").read_text())
    assert content["rotated"]["dimension"] == 64
    assert content["rotated"]["patch_norm"]["ks"] == pytest.approx(content["base"]["patch_norm"]["ks"], abs=1e-6)
