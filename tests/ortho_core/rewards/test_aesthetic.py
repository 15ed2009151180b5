"""`aesthetic` against the published predictor's arithmetic on transformers' own embeddings."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.rewards.aesthetic import WEIGHTS, Aesthetic
from ortho_core.rewards.clip import ClipTower
from tests.ortho_core.rewards.conftest import directional_errors, make_aesthetic, pictures, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_aesthetic(tmp_path_factory.mktemp("aesthetic"), 24)


def load(folder, clip_folder, dtype="float32") -> Aesthetic:
    return Aesthetic.load(folder, ClipTower.load(clip_folder, "aesthetic", "CLIP", dtype=dtype), dtype=dtype)


def test_it_is_the_linear_layers_on_the_normalised_embedding(folder, clip_folder, prompts):
    from transformers import CLIPImageProcessor, CLIPModel

    images = pictures((56, 56))
    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        x = CLIPModel.from_pretrained(clip_folder).eval().get_image_features(pixel_values=pixels).pooler_output
    x = x / x.norm(dim=-1, keepdim=True)
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    for layer in (0, 2, 4, 6, 7):
        x = x @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
    assert x.std() > 0.01
    found = load(folder, clip_folder).score(tensors(images), prompts)
    torch.testing.assert_close(found, x[:, 0], rtol=1e-3, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences(folder, clip_folder, prompts):
    reward = load(folder, clip_folder, "float64")
    encoded = reward.encode_prompts(prompts)
    errors = directional_errors(lambda x: reward.score_encoded(x, encoded), tensors(pictures((64, 64))))
    assert errors.max() < 1e-4


def test_the_prompt_plays_no_part(folder, clip_folder, prompts):
    reward, images = load(folder, clip_folder), tensors(pictures((56, 56)))
    assert torch.equal(reward.score(images, prompts), reward.score(images, ["other"] * 4))
    assert all(len(rows) == 4 for rows in reward.encode_prompts(prompts).values())


def test_it_matches_the_predictor_of_image_reward(folder, clip_folder):
    """The published layers as the `image-reward` package has them, which loads the same file."""
    package = Path(importlib.util.find_spec("ImageReward").origin).parent
    # The class alone: its module imports a CLIP that nothing here needs.
    tree = ast.parse((package / "models" / "AestheticScore.py").read_text())
    (mlp,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "MLP")
    names = {"nn": torch.nn}
    exec(compile(ast.Module([mlp], []), "AestheticScore.MLP", "exec"), names)
    theirs = names["MLP"](24).eval()
    theirs.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True), strict=True)
    embedding = torch.nn.functional.normalize(torch.randn(5, 24), dim=-1)
    found = load(folder, clip_folder).score_embedding(embedding, {})
    torch.testing.assert_close(found, theirs(embedding)[:, 0].detach(), rtol=1e-5, atol=1e-6)


def test_missing_weights_are_named(tmp_path, clip_folder):
    with pytest.raises(UserError, match=r"has no sac\+logos\+ava1-l14-linearMSE\.pth; put the files of the improved"):
        load(tmp_path, clip_folder)


def test_weights_for_another_clip_are_refused(tmp_path, clip_folder):
    make_aesthetic(tmp_path, 768)
    with pytest.raises(UserError, match="rates embeddings of length 768, but those of the CLIP model have length 24"):
        load(tmp_path, clip_folder)
