"""The models that look at images: found, refused, and equal to their packages' own."""

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.evaluation.features import INCEPTION, find_features, find_lpips
from tests.ortho_core.evaluation.judges import pictures


def test_inception_is_torch_fidelitys_with_weights_from_the_users_file(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as published

    def no_download(*args, **kwargs):
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(published, "load_state_dict_from_url", no_download)
        patch.setattr(published.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        model = published.FeatureExtractorInceptionV3("own", ["2048"])
    (tmp_path / "inception").mkdir()
    torch.save(model.state_dict(), tmp_path / "inception" / INCEPTION)
    extractor = find_features("inception", tmp_path).load("cpu", {})
    images = pictures(2)
    (expected,) = model(images)
    assert torch.allclose(extractor(images.float() / 255), expected)
    assert expected.shape == (2, 2048)
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "inception" / INCEPTION)
    with pytest.raises(UserError, match="does not fit the network"):
        find_features("inception", tmp_path).load("cpu", {})


def test_a_folder_of_another_vision_model_is_seen_through_its_own_preprocessing(tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = BitImageProcessor(**sizes, do_convert_rgb=False)
    processor.save_pretrained(tmp_path)
    found = find_features(str(tmp_path), tmp_path)
    assert found.kind == "vision"
    images = pictures(3)
    inputs = processor(images=list(images), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).pooler_output
    features = found.load("cpu", {})(images.float() / 255)
    assert features.shape == (3, 24)
    assert torch.allclose(features, expected, atol=0.05)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda root: find_features("inception", root),
            "--features inception: .*inception does not exist and should hold",
        ),
        (lambda root: find_features("nowhere", root), "accepted: tiny-clip, inception, or a folder"),
        (lambda root: find_features(str(root), root), "has no config.json"),
        (lambda root: find_lpips(str(root)), "no alexnet.*there; put one of torchvision's weight files there"),
    ],
)
def test_files_that_are_missing_are_named_with_what_belongs_there(make, says, tmp_path):
    with pytest.raises(UserError, match=says):
        make(tmp_path)
