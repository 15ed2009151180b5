"""Weighted sums, and the loading of what they are made of."""

from types import SimpleNamespace

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.rewards.base import Reward
from ortho_core.rewards.clip import ClipTower
from ortho_core.rewards.combined import WeightedSum, load_rewards
from ortho_core.rewards.hpsv2 import HpsV2
from ortho_core.rewards.imagereward import FILES, ImageReward
from tests.ortho_core.rewards.conftest import directional_errors, make_aesthetic, make_clip, pictures, tensors


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_turbo):
    """A root of rewards as a user has it, with three of them."""
    root = tmp_path_factory.mktemp("models")
    make_clip(root / "clip-vit-large-patch14", tiny_turbo / "tokenizer")
    make_clip(root / "pickscore-v1", tiny_turbo / "tokenizer", seed=5)
    make_aesthetic(root / "aesthetic", 24)
    return root


@pytest.fixture(scope="module")
def loaded(root) -> WeightedSum:
    return load_rewards("hybrid:2,pickscore:0.05", root)


@pytest.fixture
def images() -> torch.Tensor:
    return tensors(pictures((64, 64)))


def test_it_is_the_weighted_sum_of_its_parts(loaded, root, images, prompts):
    assert isinstance(loaded, Reward)
    assert loaded.name == "aesthetic:2,clip:0.5,pickscore:0.05"
    encoded = loaded.encode_prompts(prompts)
    assert all(len(rows) == 4 for rows in encoded.values())
    scores = loaded.scores(images, encoded)
    assert list(scores) == ["aesthetic", "clip", "pickscore"]
    for name, found in scores.items():
        torch.testing.assert_close(found, load_rewards(name, root).score(images, prompts))
    expected = 2 * scores["aesthetic"] + 0.5 * scores["clip"] + 0.05 * scores["pickscore"]
    torch.testing.assert_close(loaded.score(images, prompts), expected)


def test_rewards_on_one_tower_embed_the_image_once(loaded, images, prompts, monkeypatch):
    seen = []
    embed = ClipTower.embed_images
    monkeypatch.setattr(ClipTower, "embed_images", lambda self, x: seen.append(self) or embed(self, x))
    encoded = loaded.encode_prompts(prompts)
    loaded.score_encoded(images, encoded)
    assert len(seen) == 2  # CLIP's for two rewards, PickScore's own
    assert loaded.rewards["aesthetic"].tower is loaded.rewards["clip"].tower
    assert loaded.rewards["pickscore"].tower is not loaded.rewards["clip"].tower


def test_its_gradient_is_that_of_finite_differences(root, images, prompts):
    loaded = load_rewards("hybrid,pickscore:0.05", root, dtype="float64")
    encoded = loaded.encode_prompts(prompts)
    assert directional_errors(lambda x: loaded.score_encoded(x, encoded), images).max() < 1e-4


def test_one_folder_may_stand_for_another(root, clip_folder, images, prompts):
    here = load_rewards("clip", {"clip": clip_folder}).score(images, prompts)
    torch.testing.assert_close(here, load_rewards("clip", root).score(images, prompts))


def test_every_name_is_loaded_from_its_own_folder(tmp_path, monkeypatch):
    for file in ("hpsv2/HPS_v2_compressed.pt", "hpsv2/HPS_v2.1_compressed.pt", *(f"imagereward/{f}" for (f,) in FILES)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    asked, network = [], SimpleNamespace(visual=SimpleNamespace(image_size=224))
    monkeypatch.setattr(HpsV2, "load", lambda *args: asked.append(args) or HpsV2(args[1], network, None))
    monkeypatch.setattr(ImageReward, "load", lambda *args: asked.append(args) or ImageReward(network, None))
    loaded = load_rewards("hpsv2:5,imagereward:1,hpsv2.0", tmp_path, "cpu", "bfloat16")
    assert loaded.weights == {"hpsv2.1": 5.0, "imagereward": 1.0, "hpsv2.0": 1.0}
    assert asked == [
        (tmp_path / "hpsv2", "hpsv2.1", "cpu", "bfloat16"),
        (tmp_path / "imagereward", "cpu", "bfloat16"),
        (tmp_path / "hpsv2", "hpsv2.0", "cpu", "bfloat16"),
    ]


def test_missing_files_are_told_before_anything_is_loaded(root, monkeypatch):
    monkeypatch.setattr(ClipTower, "load", None)
    with pytest.raises(
        UserError, match=r"reward hpsv2.1: .*hpsv2 does not exist and should hold HPS_v2.1_compressed.pt"
    ):
        load_rewards("clip,hpsv2", root)


def test_weights_and_rewards_go_together(loaded):
    with pytest.raises(ValueError, match="one weight for each reward"):
        WeightedSum(loaded.rewards, {"clip": 1.0})
