"""`clip` against transformers' own processor and forward pass."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from ortho_core.rewards.base import Reward
from ortho_core.rewards.clip import Clip, ClipTower, read_preprocessing
from tests.ortho_core.rewards.conftest import directional_errors, pictures, tensors


def load(folder, dtype="float32") -> Clip:
    return Clip(ClipTower.load(folder, "clip", "a CLIP model", dtype=dtype))


def cosines_of_transformers(folder, images, prompts) -> torch.Tensor:
    """The diagonal of the model's own logits over its own scale."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPProcessor

    processor = CLIPProcessor(CLIPImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    model = CLIPModel.from_pretrained(folder).eval()
    window = model.config.text_config.max_position_embeddings
    inputs = processor(
        text=prompts, images=images, return_tensors="pt", padding=True, truncation=True, max_length=window
    )
    with torch.no_grad():
        return model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()


@pytest.mark.parametrize(("size", "tolerance"), [((56, 56), 1e-5), ((64, 64), 2e-2), ((112, 150), 2e-2)])
def test_it_is_the_cosine_that_transformers_computes(clip_folder, prompts, size, tolerance):
    """Of pictures that have to be resized up to the rounding to whole grey levels, which has no gradient and is left out."""
    images = pictures(size)
    expected = cosines_of_transformers(clip_folder, images, prompts)
    assert expected.std() > 0.02  # pictures that are told apart
    with torch.no_grad():
        found = load(clip_folder).score(tensors(images), prompts)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=tolerance * float(expected.std()))


def test_its_gradient_is_that_of_finite_differences(clip_folder, prompts):
    reward = load(clip_folder, "float64")
    encoded = reward.encode_prompts(prompts)
    errors = directional_errors(lambda x: reward.score_encoded(x, encoded), tensors(pictures((64, 70))))
    assert errors.max() < 1e-4


def test_a_score_and_a_prompts_row_do_not_depend_on_their_company(clip_folder, prompts):
    reward, images = load(clip_folder), tensors(pictures((64, 64)))
    encoded = reward.encode_prompts(prompts)
    assert encoded["text"].shape == (4, 24)
    torch.testing.assert_close(reward.encode_prompts(prompts[1:2])["text"], encoded["text"][1:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(encoded["text"][0], encoded["text"][3], rtol=0, atol=1e-6)
    together = reward.score_encoded(images, encoded)
    alone = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    swapped = images.clone()
    swapped[2] = 1 - swapped[2]
    others = [0, 1, 3]
    torch.testing.assert_close(reward.score_encoded(swapped, encoded)[others], together[others], rtol=0, atol=1e-6)


def test_many_prompts_are_encoded_in_chunks(clip_folder):
    reward = load(clip_folder)
    many = [f"prompt {i}" for i in range(70)]
    torch.testing.assert_close(
        reward.encode_prompts(many)["text"][69:], reward.encode_prompts(many[69:])["text"], rtol=0, atol=1e-6
    )


def test_it_is_a_reward_whose_weights_get_no_gradients(clip_folder, prompts):
    reward = load(clip_folder, "bfloat16")
    assert isinstance(reward, Reward)
    images = tensors(pictures((56, 56))).requires_grad_()
    scores = reward.score(images, prompts)
    scores.sum().backward()
    assert scores.dtype == torch.float32
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in reward.tower.model.parameters())


def test_one_prompt_per_image(clip_folder, prompts):
    with pytest.raises(ValueError, match="4 images and 3 prompts"):
        load(clip_folder).score(tensors(pictures((56, 56))), prompts[:3])


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_a_missing_file_is_named(clip_folder, tmp_path, missing):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"reward clip: .*has no {missing}.*put the files of a CLIP model there"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist and should hold config.json, model.safetensors or"):
        load(tmp_path / "nowhere")


def test_damaged_weights_are_named(clip_folder, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="cannot be loaded as a CLIP model") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_all_there_are_refused(clip_folder, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, visual_projection.weight among them"):
        load(folder)


def test_a_model_that_is_no_clip_is_refused(clip_folder, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(UserError, match="names a model of type siglip; accepted: clip"):
        load(folder)


def test_images_of_another_size_than_the_model_sees_are_refused(clip_folder, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 64, "crop_size": 64}))
    with pytest.raises(UserError, match="makes images of 64 pixels, but the model of that folder needs 56"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"resample": 2}, "resample is 2"),
        ({"do_resize": False}, "do_resize is False"),
        ({"size": {"height": 224, "width": 224}}, "size is"),
        ({"size": 224, "crop_size": {"height": 224, "width": 200}}, "crop_size"),
    ],
)
def test_another_kind_of_preprocessing_is_refused(tmp_path, config, said):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{said}.*accepted: a bicubic resize"):
        read_preprocessing(file, "clip")


def test_the_preprocessing_of_older_files_is_read(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": 224, "crop_size": 224, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}))
    found = read_preprocessing(file, "clip")
    assert (found.size, found.mean) == (224, (0.1, 0.2, 0.3))
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_preprocessing(file, "clip")
