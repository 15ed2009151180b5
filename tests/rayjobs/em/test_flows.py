"""Every verb on flow models: SANA-Sprint and FLUX.1-schnell in miniature."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import safe_open

from benchmarks.flows import own_latents, relative
from ortho_core.evaluation.features import TINY_CLIP
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import lora_of
from ortho_core.generators.lora_files import KOHYA_WEIGHTS, LORA_WEIGHTS
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_keys import prompt_key
from ortho_core.noise.seeded import seeded_normal
from ortho_core.records.assignments import Assignments
from rayjobs.cli import main
from rayjobs.em.job import ending, run
from rayjobs.reports.summaries import TrainSummary
from rayjobs.sweep.job import run as run_sweep
from tests.conftest import copy_pairs
from tests.rayjobs.em.test_job import ALL_HERE, job
from tests.rayjobs.sweep import test_job as sweeping

LORA = ALL_HERE["train"].model_copy(update={"lora_rank": 2, "lr": 1e-2, "epochs": 2})

SETTINGS = {**ALL_HERE, "train": LORA, "cycles": 1, "baseline": False}


@pytest.fixture(scope="module", params=["sana_sprint", "flux"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def done(folder, digits, tmp_path_factory):
    """EM with adapters, in this process."""
    place = tmp_path_factory.mktemp("em")
    pairs = copy_pairs(digits, place / "pairs", 24)
    one = job(pairs, folder, digits, place / "run", **SETTINGS, prompt_embeddings=str(place / "prompts"))
    assert run(one) == 0
    return one


def test_noise_is_found_and_trained_on(done, folder):
    cycle = done.work_dir / "cycle_01"
    found = Assignments(cycle / "assignments")
    shape = ModelFolder.open(folder).latent_shape
    noise, base = found.noise(range(24), shape), found.base_noise(range(24), shape)
    # Turned patch by patch: other numbers of the same length.
    assert not torch.allclose(noise, base, atol=0.1)
    torch.testing.assert_close(noise.norm(), base.norm(), rtol=1e-3, atol=0)
    summary = json.loads((cycle / "assignments" / "summary.json").read_text())
    assert summary["mean_loss"] < summary["mean_initial_loss"]
    trained = cycle / "train" / "checkpoint-final"
    lora = lora_of(ModelFolder.open(trained))
    assert set(lora.targets) == set(ModelFolder.open(folder).adapter.lora_targets)
    assert TrainSummary.read(cycle / "train" / "train_summary.json").updates == 4
    assert (trained / LORA_WEIGHTS).is_file()
    assert not (trained / KOHYA_WEIGHTS).exists()
    named = [line for line in ending(done, 0) if line.startswith("for ComfyUI: ")]
    assert bool(named) == (ModelFolder.open(folder).kind == "FluxPipeline")
    evaluation = json.loads((done.work_dir / "em_summary.json").read_text())["evaluation"]
    assert evaluation["cycle_01"]["drift"]["value"] > 0


def test_each_prompt_is_encoded_once_into_the_folder(done):
    keys = []
    for shard in (done.work_dir.parent / "prompts").rglob("prompts-*.safetensors"):
        with safe_open(shard, "pt") as stored:
            text = stored.metadata()["keys"]
            keys += [text[i : i + 64] for i in range(0, len(text), 64)]
    lines = (Path(done.pairs) / "pairs.jsonl").read_text().splitlines()
    assert {prompt_key(json.loads(line)["prompt"]).hex() for line in lines} <= set(keys)
    assert len(set(keys)) == len(keys)


def test_images_are_generated_and_the_merged_folder_is_diffusers_own(done, folder, tmp_path):
    trained = done.work_dir / "cycle_01" / "train" / "checkpoint-final"
    argv = [
        "generate",
        "--model",
        str(trained),
        "--prompt",
        "a red seven",
        "--count",
        "2",
        "--out",
        str(tmp_path / "g"),
    ]
    assert main(argv) == 0
    with Image.open(tmp_path / "g" / "0000.png") as image:
        assert np.array(image).shape == (32, 32, 3)
    assert main(["convert", "--model", str(trained), "--merge", "--out", str(tmp_path / "merged")]) == 0
    generator = load_generator(trained)
    noise = seeded_normal([1, 2, 3], generator.latent_shape)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "merged", torch_dtype=torch.bfloat16).to(torch.float32)
    theirs = own_latents(pipeline, noise, generator.image_size)
    plain = own_latents(DiffusionPipeline.from_pretrained(folder), noise, generator.image_size)
    assert relative(theirs, plain) > 1e-3


def test_noise_goes_to_a_folder_of_files_and_back(done, folder, tmp_path):
    assignments, where = str(done.work_dir / "cycle_01" / "assignments"), ["--model", str(folder)]
    assert main(["export", "--assignments", assignments, *where, "--out", str(tmp_path / "files")]) == 0
    argv = ["import", "--samples", str(tmp_path / "files"), *where, "--pairs", str(done.pairs)]
    assert main([*argv, "--out", str(tmp_path / "back")]) == 0
    shape = ModelFolder.open(folder).latent_shape
    found, back = (Assignments(place).noise(range(24), shape) for place in (assignments, tmp_path / "back"))
    torch.testing.assert_close(back, found, rtol=0, atol=1e-5)


def test_one_picture_is_inverted(done, folder, tmp_path):
    image = str(next((Path(done.pairs) / "images").iterdir()))
    argv = ["invert", "--model", str(folder), "--target-image", image, "--prompt", "a digit", "--steps", "3"]
    assert main([*argv, "--out", str(tmp_path / "i")]) == 0
    meta = json.loads((tmp_path / "i" / "meta.json").read_text())
    assert meta["loss"] < meta["initial_loss"]


def test_what_it_has_no_format_for_is_refused_in_one_line(done, folder, tmp_path, capsys):
    trained, kind = done.work_dir / "cycle_01" / "train" / "checkpoint-final", ModelFolder.open(folder).kind
    for model, accepted in ((trained, f"diffusers reads .*{LORA_WEIGHTS}"), (folder, "accepted: --out FOLDER")):
        assert main(["convert", "--model", str(model), "--out", str(tmp_path / "x.safetensors")]) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"a {kind} is not written as one file; " in said
        assert re.search(accepted, said)
    assignments = str(done.work_dir / "cycle_01" / "assignments")
    argv = ["train", "--assignments", assignments, "--model", str(folder), "--out", str(tmp_path / "t")]
    assert main([*argv, "--single-file"]) == 1
    assert "has no single-file format here; leave it out" in capsys.readouterr().err


def test_a_reward_is_raised(folder, tmp_path):
    argv = ["reward", "--model", str(folder), "--reward", "clip", "--reward-folders", f"clip={TINY_CLIP}"]
    argv += ["--prompt", "a red seven", "--steps", "4", "--patch-size", "4", "--out", str(tmp_path / "r")]
    assert main(argv) == 0
    clip = json.loads((tmp_path / "r" / "meta.json").read_text())["rewards"]["clip"]
    assert clip["after"] > clip["before"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise": "online", "match_steps": 1},
        {"lora_rank": 2, "quantize": "nf4", "gradient_checkpointing": True},
        {"num_workers": 2, "gradient_accumulation_steps": 2},
        {"num_workers": 2, "parallel": "fsdp"},
    ],
    ids=["full", "online", "packed", "two-workers", "fsdp"],
)
def test_every_way_to_train(done, folder, options, tmp_path, ray_session):
    from rayjobs.train.config import TrainJob
    from rayjobs.train.job import run as run_train

    usual = {"num_workers": 0, "epochs": 1, "batch_size": 8, "lr": 1e-3, "cpus_per_worker": 0.5}
    assignments = done.work_dir / "cycle_01" / "assignments"
    one = TrainJob(model=folder, assignments=str(assignments), out=str(tmp_path / "t"), **{**usual, **options})
    assert run_train(one) == 0
    trained = ModelFolder.open(tmp_path / "t" / "checkpoint-final")
    noise = seeded_normal([1, 2], trained.latent_shape)
    with torch.no_grad():
        made, before = (g.denoise(noise, g.encode_prompts(["a", "b"])) for g in map(load_generator, (trained, folder)))
    assert relative(made, before) > 1e-4


@pytest.mark.slow
def test_a_sweep(folder, digits, tmp_path, ray_session):
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    one = sweeping.job(pairs, folder, digits, tmp_path / "sweep", cycles=1)
    assert run_sweep(one) == 0
    assert len(sweeping.finished_trials(tmp_path / "sweep")) == 4
