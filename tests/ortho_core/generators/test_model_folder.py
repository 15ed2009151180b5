"""What a folder says of its model, which of its files are the model, and what is said of folders that are broken."""

import json
import pickle
import shutil

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.pipeline_files import INDEX
from tests.ortho_core.generators.made import hub_clone


@pytest.fixture
def copy(tiny_turbo, tmp_path):
    """A copy of the model to be broken, and a function that changes one of its JSON files."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_turbo, folder)

    def edit(name, *without, **changes):
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if k not in without}))

    return folder, edit


def fingerprint(folder):
    return ModelFolder.open(folder).fingerprint


def test_shapes_are_those_of_the_loaded_model(tiny_turbo, generator, stable_diffusion, copy):
    for path, loaded in (
        (tiny_turbo, generator),
        (stable_diffusion, load_generator(ModelFolder.open(stable_diffusion))),
    ):
        opened = ModelFolder.open(path)
        assert (opened.image_size, opened.latent_shape) == (loaded.image_size, loaded.latent_shape)
        assert (opened.target_shape, opened.classes) == (loaded.latent_shape, ())
    folder, edit = copy
    edit("unet/config.json", sample_size=[8, 16])
    oblong = ModelFolder.open(folder)
    assert (oblong.latent_shape, oblong.image_size) == ((4, 8, 16), (32, 64))


def test_an_opened_folder_goes_to_another_process_with_what_is_known(tiny_turbo, monkeypatch):
    opened = ModelFolder.open(tiny_turbo)
    known = opened.fingerprint
    sent = pickle.loads(pickle.dumps(opened))
    monkeypatch.setattr("ortho_core.generators.model_folder.content_hash", lambda _: pytest.fail("hashed again"))
    assert (sent, sent.fingerprint, sent.text_fingerprint) == (opened, known, opened.text_fingerprint)
    assert load_generator(sent).latent_shape == opened.latent_shape


def test_the_path_is_absolute_for_workers_that_stand_elsewhere(tiny_turbo, monkeypatch):
    monkeypatch.chdir(tiny_turbo.parent)
    assert ModelFolder.open("tiny-turbo").path == tiny_turbo


def test_the_scale_is_what_the_pipeline_multiplies_unit_noise_by(tiny_turbo, copy):
    assert ModelFolder.open(tiny_turbo).noise_scale == pytest.approx(14.6146, abs=1e-3)
    folder, edit = copy
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    for kind, scale in (("DDIMScheduler", 1.0), ("UNet2DModel", None), ("NoSuchThing", None)):
        edit(INDEX, scheduler=["diffusers", kind])
        opened = ModelFolder.open(folder)
        if scale is not None:
            assert opened.noise_scale == scale
            continue
        with pytest.raises(
            UserError,
            match=r"scheduler_config\.json does not define the scale of the noise.*give it with --noise-scale",
        ):
            _ = opened.noise_scale


def test_a_clone_of_the_hubs_repository_is_the_same_model(tiny_turbo, generator, tmp_path):
    hub_clone(tiny_turbo, tmp_path / "turbo")
    assert fingerprint(tmp_path / "turbo") == fingerprint(tiny_turbo)
    (tmp_path / "turbo").rename(tmp_path / "moved")
    opened = ModelFolder.open(tmp_path / "moved")
    assert opened.fingerprint == fingerprint(tiny_turbo)
    # And it loads as the same: whatever else lies there is not what diffusers takes.
    loaded, noise = load_generator(opened), generator.base_noise([1])
    with torch.no_grad():
        ours, theirs = (one.denoise(noise, one.encode_prompts(["a seven"])) for one in (loaded, generator))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("left_out", ["there", "missing"])
def test_a_safety_checker_is_neither_loaded_nor_part_of_the_model(left_out, stable_diffusion, tmp_path):
    folder = tmp_path / "with-checker"
    shutil.copytree(stable_diffusion, folder)
    content = json.loads((folder / INDEX).read_text()) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (folder / INDEX).write_text(json.dumps(content))
    if left_out == "there":
        for part in ("safety_checker", "feature_extractor"):
            (folder / part).mkdir()
            (folder / part / "config.json").write_text("{}")
    assert fingerprint(folder) == fingerprint(stable_diffusion)
    assert load_generator(ModelFolder.open(folder)).pipeline.safety_checker is None


def flipped(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
        "one_step.json",
        INDEX,
    ],
)
def test_every_file_that_is_loaded_decides(name, copy, tiny_turbo):
    folder, edit = copy
    if name == "one_step.json":
        (folder / name).write_text('{"timestep": 800}')
        at_800 = fingerprint(folder)
        (folder / name).write_text('{"timestep": 799}')
        assert fingerprint(folder) != at_800
        (folder / name).write_text("{}")  # which says no more than its absence
        assert fingerprint(folder) == fingerprint(tiny_turbo)
        (folder / name).write_text('{"timestep": 800}')
    elif name == INDEX:
        edit(INDEX, scheduler=["diffusers", "EulerDiscreteScheduler"])
    elif name.endswith(".json"):
        edit(name, something="else")
    else:
        flipped(folder / name)
    assert fingerprint(folder) != fingerprint(tiny_turbo)


def test_shards_are_part_of_the_model(copy):
    folder, _ = copy
    from diffusers import UNet2DConditionModel

    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(folder / "unet", max_shard_size="4MB")
    whole.unlink(missing_ok=True)
    before = fingerprint(folder)
    flipped(sorted(whole.parent.glob("*-of-*.safetensors"))[-1])
    assert fingerprint(folder) != before


def test_models_that_share_their_text_encoders_share_embeddings(copy, tiny_turbo, generator, tmp_path):
    folder, edit = copy
    opened = ModelFolder.open(tiny_turbo)
    flipped(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert ModelFolder.open(folder).text_fingerprint == opened.text_fingerprint
    edit("tokenizer/tokenizer_config.json", model_max_length=20)
    assert ModelFolder.open(folder).text_fingerprint != opened.text_fingerprint


def refused(folder, says):
    with pytest.raises(UserError, match=says) as caught:
        ModelFolder.open(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_folder_is_refused_in_one_line(tmp_path, tiny_turbo):
    refused(tmp_path / "nowhere", "nowhere does not exist")
    refused(
        tiny_turbo / "README.md",
        r"README\.md is a \.md file; accepted: the folder of a diffusers pipeline, or a single",
    )
    refused(tmp_path / ("x" * 300), "cannot be read: File name too long")
    refused(tmp_path, r"no model_index\.json")
    for content, says in (
        ("", r"model_index\.json is empty"),
        ("[1", r"model_index\.json is not JSON"),
        ("{}", r"model_index\.json names a pipeline without _class_name; accepted: StableDiffusionPipeline"),
        ('{"_class_name": "PixArtAlphaPipeline"}', "names a PixArtAlphaPipeline; accepted: StableDiffusionPipeline"),
        ('{"_class_name": ["x"]}', r"names a \['x'\]; accepted"),
    ):
        (tmp_path / INDEX).write_text(content)
        refused(tmp_path, says)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        (INDEX, {"unet": [None, None]}, "names no unet, which a StableDiffusionXLPipeline needs"),
        (INDEX, {"unet": None}, "names no unet"),
        (INDEX, {"unet": "unet"}, r'unet is "unet"; accepted: \[diffusers or transformers, name of a class\]'),
        (INDEX, {"unet": ["diffusers", None]}, r"unet is \[\"diffusers\", null\]; accepted"),
        (INDEX, {"unet": [["diffusers"], "UNet"]}, "unet is .*; accepted"),
        (INDEX, {"unet": ["my_code", "UNet"]}, r"unet is \[\"my_code\", \"UNet\"\]; accepted"),
        (
            "unet/config.json",
            {"sample_size": None},
            r"unet/config\.json does not state the latent's shape.*sample_size None",
        ),
        (
            "unet/config.json",
            {"sample_size": [8]},
            r"sample_size \[8\]; accepted: a number of channels, and one side or \[height, width\]",
        ),
        ("unet/config.json", {"sample_size": "8"}, "sample_size '8'"),
        ("unet/config.json", {"sample_size": -8}, "sample_size -8"),
        ("unet/config.json", {"sample_size": 8.0}, "sample_size 8.0"),
        ("unet/config.json", {"in_channels": True}, "in_channels True"),
        ("vae/config.json", {"block_out_channels": []}, r"vae/config\.json does not state the autoencoder's blocks"),
        ("vae/config.json", {"block_out_channels": 3}, "block_out_channels 3; accepted: a list"),
    ],
)
def test_what_a_configuration_lacks_is_told_by_its_file(file, changes, says, copy):
    folder, edit = copy
    edit(file, **changes)
    refused(folder, says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"timesteps": 799}', r"one_step\.json has unknown entries \['timesteps'\]; accepted: timestep"),
        ('{"timestep": "799"}', r"one_step\.json: timestep is '799'; accepted: a whole number"),
        ('{"timestep": -1}', "timestep is -1"),
        ('{"timestep": true}', "timestep is True"),
    ],
)
def test_a_recipe_that_is_none_is_refused(content, says, copy):
    folder, _ = copy
    (folder / "one_step.json").write_text(content)
    refused(folder, says)


def test_parts_that_are_not_there_are_named_with_the_remedy(copy):
    folder, edit = copy
    edit(INDEX, "image_encoder", "feature_extractor")  # whether absent parts are named or not is all the same
    ModelFolder.open(folder)
    edit(INDEX, text_encoder=[None, None], tokenizer=[None, None])
    assert fingerprint(folder)
    for name, says in (
        ("vae/config.json", r"vae/config\.json is missing: fetch"),
        (
            "unet/diffusion_pytorch_model.safetensors",
            r"diffusion_pytorch_model\.safetensors is missing: fetch the safetensors",
        ),
        ("tokenizer_2/tokenizer.json", "tokenizer_2 has neither"),
        ("scheduler/scheduler_config.json", r"scheduler_config\.json is missing"),
    ):
        there = (folder / name).read_bytes()
        (folder / name).unlink()
        refused(folder, says)
        (folder / name).write_bytes(there)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, r"vae/diffusion_pytorch_model\.safetensors is a git-lfs pointer.* `git lfs pull`")
    shutil.rmtree(folder / "vae")
    refused(folder, r"model_index\.json names a vae, but there is no folder .*vae: fetch the model folder again")


def test_weights_that_vanish_after_the_folder_was_opened_are_named(copy):
    folder, _ = copy
    opened = ModelFolder.open(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors cannot be read: No such file"):
        _ = opened.fingerprint
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.safetensors is missing: fetch"):
        load_generator(opened)
