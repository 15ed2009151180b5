"""`pickscore` against what PickScore's authors do with transformers' model."""

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.rewards.combined import load_rewards
from ortho_core.rewards.pickscore import PickScore
from tests.ortho_core.rewards.conftest import directional_errors, pictures, tensors


def load(folder, dtype="float32") -> PickScore:
    reward = load_rewards("pickscore", {"pickscore": folder}, dtype=dtype).rewards["pickscore"]
    assert isinstance(reward, PickScore)
    return reward


def test_it_is_the_scaled_cosine_of_transformers(clip_folder, prompts):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    images = pictures((56, 56))
    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(images=images, return_tensors="pt")["pixel_values"]
    window = model.config.text_config.max_position_embeddings
    tokens = AutoTokenizer.from_pretrained(clip_folder)(
        prompts, padding=True, truncation=True, max_length=window, return_tensors="pt"
    )
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        text = model.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
        image, text = image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
        expected = model.logit_scale.exp() * (text @ image.T).diagonal()
    assert expected.std() > 0.1
    found = load(clip_folder).score(tensors(images), prompts)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_its_gradient_is_that_of_finite_differences(clip_folder, prompts):
    reward = load(clip_folder, dtype="float64")
    encoded = reward.encode_prompts(prompts)
    errors = directional_errors(lambda x: reward.score_encoded(x, encoded), tensors(pictures((60, 56))))
    assert errors.max() < 1e-4


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"reward pickscore: .*put the files of PickScore v1"):
        load(tmp_path)
