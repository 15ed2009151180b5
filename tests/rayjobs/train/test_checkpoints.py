"""The folders of a run: averages, the best by validation, samples, cards."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import RECORD
from ortho_core.losses import mean_square
from ortho_core.records.assignments import Assignments
from rayjobs.train.job import run
from tests.rayjobs.train.training import history, job, summary, weights

pytestmark = pytest.mark.usefixtures("ray_session")
ROWS = 16


@pytest.fixture(scope="module")
def validated(assigned, tiny_turbo, tmp_path_factory, ray_session):
    """Three epochs of one update each, a validation after each; the last ones overshoot."""
    out = tmp_path_factory.mktemp("validated") / "out"
    options = {"epochs": 3, "batch_size": 24, "lr": 2e-3, "preserve_latent_weight": 0.0, "preserve_pixel_weight": 0.0}
    options |= {"validation": assigned[1], "validation_rows": ROWS, "validate_every": 1, "ema": True, "ema_decay": 0.5}
    assert run(job(assigned, tiny_turbo, out, **options)) == 0
    return out


def vector(folder):
    return torch.cat([value.flatten().double() for value in weights(folder).values()])


def matched_error(folder, assigned):
    """Of a model folder, on the held-out rows, written out."""
    model, held = load_generator(ModelFolder.open(folder)), Assignments(assigned[1])
    prompts = [row["prompt"] for row in held.rows(range(ROWS), ["prompt"])]
    with torch.no_grad():
        latents = model.denoise(held.noise(range(ROWS), model.latent_shape), model.encode_prompts(prompts))
    return float(mean_square(latents, held.targets(range(ROWS), model.latent_shape)).mean())


def test_the_averaged_folders_are_the_average_of_the_folders(validated):
    raw = [vector(validated / f"checkpoint-epoch-{k:03d}") for k in (1, 2, 3)]
    average = raw[0]
    for n, value in enumerate(raw[1:], 1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
        there = vector(validated / f"checkpoint-epoch-{n + 1:03d}-ema")
        torch.testing.assert_close(there, average, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(there, value, atol=1e-6)
    names = {p.name for p in validated.iterdir() if p.name.startswith("checkpoint-")}
    plain = {f"checkpoint-{x}" for x in ("best", "final", "epoch-001", "epoch-002", "epoch-003")}
    assert names == plain | {f"{name}-ema" for name in plain}


def test_before_training_the_figures_are_those_of_the_assignments(validated, assigned):
    first = summary(validated)["validations"][0]
    recorded = [row["latent_loss"] for row in Assignments(assigned[1]).rows(range(ROWS), ["latent_loss"])]
    assert first["latent"] == pytest.approx(np.mean(recorded), rel=1e-3)
    assert first["drift"] == pytest.approx(0, abs=1e-9)
    # Of the average too, which is the model itself then.
    assert first["ema_latent"] == pytest.approx(first["latent"], rel=1e-5)


def test_figures_are_measured_where_they_say_and_the_lowest_is_the_best(validated, assigned):
    figures = summary(validated)["validations"]
    assert [f["update"] for f in figures] == [0, 1, 2, 3]
    assert all(set(f) == {"update", "latent", "drift", "ema_latent", "ema_drift"} for f in figures)
    assert all(f["drift"] > 0 for f in figures[1:])
    for line, figure in zip(history(validated, "validation"), figures, strict=True):
        assert {k: v for k, v in line.items() if k != "group"} == figure
    for k in (1, 2, 3):
        folder = validated / f"checkpoint-epoch-{k:03d}"
        assert matched_error(folder, assigned) == pytest.approx(figures[k]["latent"], rel=1e-4)
    assert matched_error(validated / "checkpoint-final-ema", assigned) == pytest.approx(figures[3]["ema_latent"], 1e-4)
    lowest = min(figures[1:], key=lambda figure: figure["latent"])["update"]
    assert torch.equal(vector(validated / "checkpoint-best"), vector(validated / f"checkpoint-epoch-{lowest:03d}"))


def test_every_validation_leaves_a_sheet_of_samples_and_curves_at_the_end(validated, trained):
    sheets = sorted((validated / "samples").iterdir())
    assert [p.name for p in sheets] == [f"update-{k:06d}.png" for k in range(4)]
    pixels = []
    for sheet in sheets:
        with Image.open(sheet) as picture:
            assert picture.size[0] >= 8 * 32
            pixels.append(np.asarray(picture))
    assert (pixels[0] != pixels[3]).any()
    with Image.open(validated / "train_history.png") as both, Image.open(trained / "train_history.png") as alone:
        assert both.size[0] * both.size[1] > alone.size[0] * alone.size[1]


def front_matter(folder):
    text = (folder / "README.md").read_text()
    match = re.match(r"---\n(.*?)---\n\n# ", text, re.DOTALL)
    return yaml.safe_load(match[1]), text


def test_a_card_names_a_downloaded_base_as_the_hub_does(assigned, tiny_turbo, tmp_path):
    base = tmp_path / "turbo"
    shutil.copytree(tiny_turbo, base)
    record = {"repository": "someone/turbo", "commit": "0123", "license": "mit"}
    (base / RECORD).write_text(json.dumps({"turbo": record}))
    one = job(assigned, base, tmp_path / "out", lora_rank=2, epochs=1, save_every=0)
    assert run(one) == 0
    head, text = front_matter(tmp_path / "out" / "checkpoint-final")
    assert head["base_model"] == "someone/turbo"
    assert "| base model | turbo (someone/turbo at 0123, licence mit) |" in text
    assert f'from_pretrained("{base}")' in text
    assert "copy `lora_kohya.safetensors` from this folder to their LoRAs folder" in text


def test_a_folders_card_says_what_it_was_made_from(trained, validated, adapted, tiny_turbo):
    head, text = front_matter(trained / "checkpoint-final")
    assert head["base_model"] == "tiny-turbo"
    assert (head["library_name"], head["base_model_relation"]) == ("diffusers", "finetune")
    assert f"(fingerprint {ModelFolder.open(tiny_turbo).fingerprint})" in text
    assert "| update | 6 of 6 |" in text
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert (settings["lr"], settings["noise"]) == (1e-3, "matched")
    assert f"| train loss | {summary(trained)['final_loss']:.5g} |" in text
    _, text = front_matter(validated / "checkpoint-final-ema")
    assert "| weights | averaged over updates (EMA) |" in text
    assert f"| validation latent | {summary(validated)['validations'][-1]['latent']:.5g} |" in text
    head, text = front_matter(adapted / "checkpoint-best")
    assert (head["base_model"], head["base_model_relation"]) == ("tiny-turbo", "adapter")
    assert "lora" in head["tags"]
    assert "load_lora_weights" in text


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_card_names_model_and_data_and_no_place_of_this_machine(assigned, tiny_turbo, tmp_path, lora_rank):
    """A second run goes on from the first one's model, and is held to the first one's start; neither is told the pairs."""
    settings = {"epochs": 1, "save_every": 0, "lora_rank": lora_rank, "allow_stale": True}
    assert run(job(assigned, tiny_turbo, tmp_path / "first", **settings)) == 0
    before = tmp_path / "first" / "checkpoint-final"
    assert run(job(assigned, before, tmp_path / "second", preserve_model=tiny_turbo, **settings)) == 0
    _, text = front_matter(tmp_path / "second" / "checkpoint-final")
    title = f"# {'LoRA of ' if lora_rank else ''}tiny-turbo, fine-tuned on pairs"
    assert title in text.splitlines()
    plan = json.loads((tmp_path / "second" / "plan.json").read_text())
    assert f"| pairs | pairs (fingerprint {plan['pairs_fingerprint']}) |" in text
    assert f"| assignments | out (run {plan['assignments']}) |" in text
    started = f"checkpoint-final, fine-tuned from tiny-turbo (fingerprint {plan['model_fingerprint']})"
    assert f"| started from | {started} |" in text
    assert f"| held to | tiny-turbo (fingerprint {plan['preserve_fingerprint']}) |" in text
    said, code = text.split("## Use")
    for place in (tmp_path, tiny_turbo, *assigned):
        assert str(place) not in said
        assert str(place) not in code.split("## Configuration")[1]
