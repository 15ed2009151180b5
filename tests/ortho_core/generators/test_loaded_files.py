"""A model that is swapped between planning and loading is found out, whatever file of it; an equal copy is the same model."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.lora import add_lora, lora_parameters
from ortho_core.generators.lora_config import AddedLora, Lora
from ortho_core.generators.lora_files import LORA_WEIGHTS
from ortho_core.generators.model_folder import ModelFolder
from tests.ortho_core.generators.original_names import single_file

UNET = "unet/diffusion_pytorch_model.safetensors"
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"


def with_other_weights(file):
    """Put a file of the same names and shapes in the place of this one, at once, as a download or a link does."""
    tensors = load_file(file)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name] = tensors[name] + 0.5
    aside = file.with_name("aside")
    save_file(tensors, aside, {"format": "pt"})
    os.replace(aside, file)


def with_other_text(file):
    """Say something else in a JSON file that loads all the same."""
    content = json.loads(file.read_text())
    changes = {"scheduler_config.json": {"beta_end": 0.013}, "tokenizer.json": {"added": 1}}
    file.write_text(json.dumps(content | changes.get(file.name, {"another": 1})))


def with_other_merges(file):
    first, second, third, *others = file.read_text().splitlines()
    file.write_text("\n".join([first, third, second, *others]) + "\n")


def halve(folder):
    """Add the float16 variant of the network."""
    weights = {name: value.half() for name, value in load_file(folder / UNET).items()}
    save_file(weights, folder / HALF, {"format": "pt"})


def adapter_of(model, folder, seed):
    """A LoRA folder whose adapter does something."""
    generator = load_generator(ModelFolder.open(model))
    add_lora(generator.trainable, Lora(2, 2.0, ("to_q",)), seed=seed)
    for parameter in lora_parameters(generator.trainable):
        torch.nn.init.normal_(parameter, std=0.02)
    generator.save(folder)
    return folder


def pipeline(folder, tmp_path):
    return ModelFolder.open(folder)


def with_vocabulary(folder, tmp_path):
    """Its tokenizer in the two files of before."""
    for part in ("tokenizer", "tokenizer_2"):
        known = json.loads((folder / part / "tokenizer.json").read_text())["model"]
        (folder / part / "vocab.json").write_text(json.dumps(known["vocab"]))
        merges = [each if isinstance(each, str) else " ".join(each) for each in known["merges"]]
        (folder / part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        (folder / part / "tokenizer.json").unlink()
    return ModelFolder.open(folder)


def lora(folder, tmp_path):
    return ModelFolder.open(adapter_of(folder, tmp_path / "lora", 1))


def added(folder, tmp_path):
    file = adapter_of(folder, tmp_path / "lora", 1) / LORA_WEIGHTS
    return ModelFolder.open(folder).with_loras([AddedLora(file=file, weight=0.5)])


def checkpoint(folder, tmp_path):
    return ModelFolder.open(single_file(folder, tmp_path / "one.safetensors"))


def classes(folder, tmp_path):
    torch.manual_seed(0)
    config = ClassConfig(classes=("a", "b"), noise_shape=(4, 8, 8), image_shape=(1, 28, 28), widths=(16, 8, 8))
    ClassGenerator(config, ClassNetwork(config).requires_grad_(False).eval()).save(tmp_path / "gan")
    return ModelFolder.open(tmp_path / "gan")


def renamed_classes(file):
    file.write_text(file.read_text().replace('"a"', '"c"'))


@pytest.fixture
def folder(tiny_turbo, tmp_path):
    return shutil.copytree(tiny_turbo, tmp_path / "turbo")


SWAPS = {
    "weights": (pipeline, f"turbo/{UNET}", with_other_weights),
    "scheduler": (pipeline, "turbo/scheduler/scheduler_config.json", with_other_text),
    "tokenizer": (pipeline, "turbo/tokenizer/tokenizer.json", with_other_text),
    "vocabulary": (with_vocabulary, "turbo/tokenizer_2/merges.txt", with_other_merges),
    "adapter": (lora, f"lora/{LORA_WEIGHTS}", with_other_weights),
    "base of an adapter": (lora, f"turbo/{UNET}", with_other_weights),
    "added LoRA": (added, f"lora/{LORA_WEIGHTS}", with_other_weights),
    "checkpoint": (checkpoint, "one.safetensors", with_other_weights),
    "configuration of a checkpoint": (checkpoint, "one/scheduler/scheduler_config.json", with_other_text),
    "classes": (classes, "gan/network.safetensors", with_other_weights),
    "names of classes": (classes, "gan/config.json", renamed_classes),
}


@pytest.mark.parametrize(("make", "file", "swap"), SWAPS.values(), ids=SWAPS)
def test_what_was_swapped_after_planning_is_named_in_one_line(make, file, swap, folder, tmp_path):
    model = make(folder, tmp_path)
    planned = planned_fingerprint(model, "float32")
    kept = shutil.copy2(tmp_path / file, tmp_path / "kept")
    for worker in (pickle.loads(pickle.dumps(model)), model):
        swap(tmp_path / file)
        with pytest.raises(UserError, match="has changed since the run was planned; put back") as raised:
            load_generator(worker)
        assert str(raised.value).startswith(str(tmp_path / file))
        assert "\n" not in str(raised.value)
        shutil.copy2(kept, tmp_path / file)
        assert load_generator(worker).loaded_fingerprint == planned


def test_a_copy_at_another_time_is_the_same_model(folder, tmp_path):
    model = ModelFolder.open(folder)
    planned = planned_fingerprint(model, "auto")
    folder.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", folder, copy_function=shutil.copyfile)
    os.utime(folder / UNET, ns=(0, 0))
    assert load_generator(model).loaded_fingerprint == planned == ModelFolder.open(folder).fingerprint


def test_the_variant_that_is_loaded_is_compared_and_no_other_is_read(folder):
    halve(folder)
    model = ModelFolder.open(folder)
    assert planned_fingerprint(model, "auto") == model.fingerprint
    full = load_generator(model)
    half = load_generator(model, dtype="float16")
    assert full.loaded_fingerprint == model.fingerprint != half.loaded_fingerprint
    with_other_weights(folder / HALF)
    assert load_generator(model).loaded_fingerprint == model.fingerprint
    with pytest.raises(UserError, match=r"fp16\.safetensors has changed since"):
        load_generator(model, dtype="float16")
    (folder / UNET).unlink()
    alone = ModelFolder.open(folder)
    assert load_generator(alone, dtype="float16").loaded_fingerprint == alone.fingerprint


def test_a_variant_that_was_not_planned_for_is_known_from_its_first_load(folder):
    halve(folder)
    model = ModelFolder.open(folder)
    planned_fingerprint(model, "float32")
    assert HALF not in model.seen
    with_other_weights(folder / HALF)
    load_generator(model, dtype="float16")
    with_other_weights(folder / HALF)
    with pytest.raises(UserError, match=r"fp16\.safetensors has changed since"):
        load_generator(model, dtype="float16")


@pytest.mark.parametrize("make", [pipeline, lora, added, checkpoint, classes])
def test_between_two_loads_of_one_process_nothing_may_change_either(make, folder, tmp_path):
    model = make(folder, tmp_path)
    first = load_generator(model)
    assert first.loaded_fingerprint == model.fingerprint
    with_other_weights(tmp_path / ("gan/network.safetensors" if make is classes else f"turbo/{UNET}"))
    if make is checkpoint:
        with_other_weights(model.path)
    with pytest.raises(UserError, match="has changed since"):
        load_generator(model)


def test_a_swap_while_it_is_loaded_is_found(folder, monkeypatch):
    model, load = ModelFolder.open(folder), DiffusersGenerator.load
    planned_fingerprint(model, "float32")

    def swapped(*arguments, **options):
        loaded = load(*arguments, **options)
        with_other_weights(folder / UNET)
        return loaded

    monkeypatch.setattr(DiffusersGenerator, "load", staticmethod(swapped))
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors has changed since"):
        load_generator(model)


def test_a_model_that_no_longer_loads_is_said_to_be_another(folder):
    model = ModelFolder.open(folder)
    planned_fingerprint(model, "float32")
    whole = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors has changed since"):
        load_generator(model)
    (folder / UNET).unlink()
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors was removed since"):
        load_generator(model)


def test_other_shards_in_the_place_of_those_that_were_planned_with_are_found(folder):
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / UNET).unlink()
    network.save_pretrained(folder / "unet", max_shard_size="4MB")
    model = ModelFolder.open(folder)
    assert load_generator(model).loaded_fingerprint == planned_fingerprint(model, "float32")
    first = sorted((folder / "unet").glob("*-00001-of-*"))[0]
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    shutil.copy(first, other := first.with_name("diffusion_pytorch_model-other.safetensors"))
    with_other_weights(other)
    index.write_text(index.read_text().replace(first.name, other.name))  # the former shard stays where it was
    with pytest.raises(UserError, match=r"-00001-of-.* was removed since"):
        load_generator(model)


def test_a_tokenizer_that_would_be_taken_instead_is_found(folder, tmp_path):
    tokenizer = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    model = with_vocabulary(folder, tmp_path)
    planned_fingerprint(model, "float32")
    (folder / "tokenizer" / "tokenizer.json").write_bytes(tokenizer)
    with pytest.raises(UserError, match=r"tokenizer/(merges\.txt has gone|tokenizer\.json was added) since"):
        load_generator(model)
