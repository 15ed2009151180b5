"""Training an adapter: what its folders are, how a run goes on with it, and what it is held to."""

import json
import re
import shlex

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import lora_of
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.losses import mean_square
from ortho_core.mstep.data import to_batch
from ortho_core.records.plan import read_plan
from ortho_core.storage.open import open_store
from rayjobs.cli import main
from rayjobs.train.job import run
from rayjobs.train.plan import TrainPlan
from tests.rayjobs.train.training import diffusers_images, history, images, job, losses, other_model, planned

pytestmark = pytest.mark.usefixtures("ray_session")


def test_an_adapters_folder_loads_here_and_in_plain_diffusers(adapted, tiny_turbo, generator):
    assert losses(adapted)[1] < losses(adapted)[0]
    for name in ("best", "final", "epoch-001", "epoch-002"):
        files = {p.name for p in (adapted / f"checkpoint-{name}").iterdir()}
        assert files == {"README.md", "lora.json", "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"}
    folder = adapted / "checkpoint-final"
    assert lora_of(ModelFolder.open(folder)) == Lora(2, 2.0, tuple(sorted(Lora.targets)))
    ours = images(load_generator(ModelFolder.open(folder)))
    assert (ours - images(generator)).abs().max() > 0.01
    pipeline = DiffusionPipeline.from_pretrained(tiny_turbo)
    pipeline.load_lora_weights(folder)
    torch.testing.assert_close(diffusers_images(pipeline), ours, rtol=0, atol=1e-4)
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(folder / "lora_kohya.safetensors")
    torch.testing.assert_close(diffusers_images(pipeline), ours, rtol=0, atol=0.02)  # it is in float16


def test_merged_folders_are_ordinary_ones_of_the_same_model(adapted, assigned, tiny_turbo, tmp_path):
    out = tmp_path / "out"
    options = {"lora_rank": 2, "lr": 3e-2, "lora_merge": True, "ema": True, "ema_decay": 0.5, "single_file": True}
    assert run(job(assigned, tiny_turbo, out, **options)) == 0
    assert losses(out) == pytest.approx(losses(adapted), abs=1e-6)
    pipeline = DiffusionPipeline.from_pretrained(out / "checkpoint-final")
    ours = images(load_generator(ModelFolder.open(adapted / "checkpoint-final")))
    torch.testing.assert_close(diffusers_images(pipeline), ours, rtol=0, atol=1e-4)
    averaged = images(load_generator(ModelFolder.open(out / "checkpoint-final-ema")))
    assert not torch.allclose(averaged, ours, atol=1e-4)
    assert not list(out.glob("**/lora.json"))
    assert not list(out.glob(".merge-*"))
    names = ("best", "final", "final-ema", "epoch-001")
    assert all((out / f"checkpoint-{name}" / "single_file.safetensors").is_file() for name in names)
    config = {"config": str(tiny_turbo), "subfolder": "unet", "local_files_only": True}
    read = UNet2DConditionModel.from_single_file(str(out / "checkpoint-final" / "single_file.safetensors"), **config)
    merged = load_generator(ModelFolder.open(out / "checkpoint-final")).trainable.state_dict()
    assert all(torch.equal(value, merged[name].half().float()) for name, value in read.state_dict().items())
    assert "`single_file.safetensors` from this folder" in (out / "checkpoint-final" / "README.md").read_text()


@pytest.fixture(scope="module")
def expected(adapted, assigned, generator):
    """The first terms of a run that goes on from the adapter: its error at matched noise, its distance from the base."""
    _, data = planned(job(assigned, adapted / "checkpoint-final", adapted / "x", lora_rank=2, allow_stale=True))
    batch = to_batch(data.share(0, 0), generator, PromptCache(generator), False)
    merged = load_generator(ModelFolder.open(adapted / "checkpoint-final"))
    with torch.no_grad():
        error = mean_square(merged.denoise(batch.noise, batch.condition), batch.target_latents).mean()
        now, before = (g.denoise(batch.preserve_noise, batch.preserve_condition) for g in (merged, generator))
    return float(error), float(mean_square(now, before).mean())


@pytest.mark.parametrize("held_to", ["base", "itself"])
def test_a_run_from_an_adapter_goes_on_with_it(adapted, assigned, tiny_turbo, tmp_path, expected, held_to):
    start, out = adapted / "checkpoint-final", tmp_path / "out"
    options = {"preserve_model": tiny_turbo} if held_to == "base" else {}
    one = job(assigned, start, out, lora_rank=2, allow_stale=True, epochs=1, save_every=0, **options)
    assert run(one) == 0
    first = history(out)[0]
    error, distance = expected
    assert first["latent"] == pytest.approx(error, rel=1e-4)
    assert distance > 1e-3
    assert first["preserve_latent"] == pytest.approx(distance if held_to == "base" else 0, rel=1e-3, abs=1e-9)
    assert history(out)[-1]["preserve_latent"] > 0
    reference = json.loads((out / "checkpoint-final" / "lora.json").read_text())
    assert reference == {"base_model": str(tiny_turbo), "base_fingerprint": ModelFolder.open(tiny_turbo).fingerprint}
    plan = read_plan(open_store(out), TrainPlan)
    assert plan.model_fingerprint == ModelFolder.open(start).fingerprint
    held = ModelFolder.open(tiny_turbo if held_to == "base" else start).fingerprint
    assert plan.preserve_fingerprint == held


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora_rank": 0}, r"is a LoRA adapter: continue with it \(--lora-rank 2\), or start from a model"),
        ({"lora_rank": 4}, r"has the adapter Lora\(rank=2, .* and the options request Lora\(rank=4, "),
        ({"lora_rank": 2, "lora_alpha": 4.0}, r"alpha=2\.0, .* alpha=4\.0, "),
        (
            {"lora_rank": 2, "lora_targets": ("to_q",)},
            r"and the options request Lora\(rank=2, alpha=2\.0, targets=\('to_q',\)",
        ),
    ],
)
def test_another_adapter_than_the_models_own_is_refused(adapted, assigned, tmp_path, options, says):
    with pytest.raises(UserError, match=says) as raised:
        run(job(assigned, adapted / "checkpoint-final", tmp_path / "out", allow_stale=True, **options))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_single_file_of_what_is_no_whole_model_is_refused(assigned, tiny_turbo, tmp_path):
    with pytest.raises(
        UserError, match=r"--single-file needs full models, and --lora-rank saves adapters, .*--lora-merge"
    ):
        planned(job(assigned, tiny_turbo, tmp_path / "out", lora_rank=2, single_file=True))


def test_targets_in_another_order_are_the_same_adapter(adapted, assigned, tmp_path):
    targets = tuple(reversed(Lora.targets))
    model = adapted / "checkpoint-final"
    planned(job(assigned, model, tmp_path / "out", allow_stale=True, lora_rank=2, lora_targets=targets))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_adapter_trains_on_a_packed_base(kind, adapted, assigned, tiny_turbo, tmp_path):
    own = {"lora_rank": 2, "lr": 3e-2, "quantize": kind}
    assert run(job(assigned, tiny_turbo, tmp_path / "whole", **own)) == 0
    first, last = losses(adapted)
    assert losses(tmp_path / "whole") == pytest.approx([first, last], rel=0.03)
    assert losses(tmp_path / "whole") != losses(adapted)
    # It is an adapter like any other, of the base as it is on disk.
    folders = (tmp_path / "whole" / "checkpoint-final", adapted / "checkpoint-final", tiny_turbo)
    ours, theirs, before = (images(load_generator(ModelFolder.open(folder))) for folder in folders)
    changes = torch.stack([(ours - before).flatten(), (theirs - before).flatten()])
    assert torch.corrcoef(changes)[0, 1] > 0.7
    with pytest.raises(UserError, match="quantize"):
        run(job(assigned, tiny_turbo, tmp_path / "whole", **(own | {"quantize": "none"})))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"--quantize nf4 is for frozen weights: train an adapter on them \(--lora-rank 16\)"),
        (
            {"lora_rank": 2, "parallel": "fsdp", "num_workers": 2},
            "--parallel fsdp cannot shard the weights of --quantize .*accepted: ddp",
        ),
    ],
)
def test_what_cannot_be_packed_is_said_before_it_starts(options, says, assigned, tiny_turbo, tmp_path):
    with pytest.raises(UserError, match=says):
        planned(job(assigned, tiny_turbo, tmp_path / "out", quantize="nf4", **options))


@pytest.fixture(scope="module")
def styled(tiny_turbo, assigned, tmp_path_factory):
    """A LoRA of somebody's, and what `ortho assign --lora` makes with it."""
    folder = tmp_path_factory.mktemp("styled")
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    draw = torch.Generator().manual_seed(1)
    factors = {"lora_A": torch.randn(4, 96, generator=draw), "lora_B": torch.randn(96, 4, generator=draw)}
    save_file({f"{name}.{key}.weight": value for key, value in factors.items()}, folder / "a style.safetensors")
    argv = ["assign", "--pairs", assigned[0], "--model", tiny_turbo, "--lora", f"{folder / 'a style.safetensors'}:0.5"]
    argv += ["--out", folder / "out", "--workers", "0", "--steps", "2", "--slots", "8", "--report", "false"]
    assert main([str(each) for each in argv]) == 0
    return assigned[0], folder / "out"


def test_assignments_made_with_a_lora_train_on_the_folder_that_it_is_merged_into(styled, tiny_turbo, tmp_path):
    with pytest.raises(UserError, match="made with another model") as refused:
        planned(job(styled, tiny_turbo, tmp_path / "out"))
    command = re.search(r"`ortho (convert .*)` makes the one for --model; or assign again", str(refused.value))[1]
    assert main(shlex.split(command.replace("FOLDER", str(tmp_path / "whole")))) == 0
    one = job(styled, tmp_path / "whole", tmp_path / "out", epochs=1, save_every=0, lora_rank=2)
    assert run(one) == 0
    card = (tmp_path / "out" / "checkpoint-final" / "README.md").read_text()
    assert f'from_pretrained("{tmp_path / "whole"}")' in card
    with pytest.raises(UserError, match="made with another model"):
        planned(job(styled, other_model(tmp_path / "whole", tmp_path / "altered"), tmp_path / "other"))


def test_a_verb_that_trains_says_how_a_lora_comes_in(capsys):
    for argv in (["train", "--lora", "a.safetensors"], ["em", "--assign.lora", "a.safetensors:0.5"]):
        assert main(argv) == 1
        said = capsys.readouterr().err
        assert "`ortho convert MODEL --lora FILE --out FOLDER` merges LoRAs into a model; give --model FOLDER" in said
        assert said.count("\n") == 1
