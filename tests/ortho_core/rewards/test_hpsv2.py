"""`hpsv2.0` and `hpsv2.1` against the `hpsv2` package's own `score`, on checkpoints in the published format."""

import gzip
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.rewards import hpsv2
from ortho_core.rewards.hpsv2 import CHECKPOINTS, HpsV2
from tests.ortho_core.rewards.conftest import directional_errors, pictures, tensors

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}

pytestmark = [
    # The package's score asks for CUDA's autocast wherever it runs.
    pytest.mark.filterwarnings(r"ignore:`?torch\.cuda\.amp\.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning"),
]


@pytest.fixture(scope="module")
def package():
    """`hpsv2.img_score`, imported with the vocabulary that it ships without, which is open_clip's."""
    import open_clip

    vocabulary = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    real = gzip.open

    def with_vocabulary(file, *args, **kwargs):
        return real(vocabulary if str(file).endswith(vocabulary.name) else file, *args, **kwargs)

    # It changes the filters of warnings when it is imported.
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(gzip, "open", with_vocabulary)
        from hpsv2 import img_score
    return img_score


def scores_of(package, model, images, prompts, checkpoint: Path, patch) -> torch.Tensor:
    """What the package says, around a model of its own kind."""
    from hpsv2.src.open_clip.transform import image_transform

    preprocess = image_transform(model.visual.image_size, is_train=False, resize_longest_max=True)
    patch.setattr(package, "model_dict", {"model": model, "preprocess_val": preprocess})
    patch.setattr(package, "device", "cpu")
    pairs = zip(images, prompts, strict=True)
    return torch.tensor([float(package.score(image, prompt, cp=str(checkpoint))[0]) for image, prompt in pairs])


@pytest.fixture
def tiny(package, tmp_path, monkeypatch):
    """A model of the package's own kind, small, and a folder with its checkpoint under the name of version 2.1."""
    import open_clip
    from hpsv2.src.open_clip.model import CLIP

    config = tmp_path / "tiny-hps.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    monkeypatch.setattr(hpsv2, "ARCHITECTURE", "tiny-hps")
    torch.manual_seed(0)
    model = CLIP(**TINY, output_dict=True)
    with torch.no_grad():  # at its initial values the network tells no two pictures apart
        model.visual.conv1.weight.mul_(20)
        model.text_projection.mul_(5)
    folder = tmp_path / "hpsv2"
    folder.mkdir()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / CHECKPOINTS["hpsv2.1"])
    return model, folder


@pytest.mark.parametrize("size", [(56, 56), (64, 64), (80, 112), (40, 30)])
def test_it_is_what_the_package_scores(package, tiny, prompts, monkeypatch, size):
    model, folder = tiny
    images = pictures(size)
    expected = scores_of(package, model, images, prompts, folder / CHECKPOINTS["hpsv2.1"], monkeypatch)
    assert expected.std() > 0.01
    with torch.no_grad():
        found = HpsV2.load(folder, "hpsv2.1").score(tensors(images), prompts)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_is_what_the_package_scores_at_full_size(package, prompts, monkeypatch, tmp_path):
    from hpsv2.src.open_clip.factory import create_model

    torch.manual_seed(0)
    model = create_model("ViT-H-14", precision="fp32", device="cpu", output_dict=True)
    file = tmp_path / CHECKPOINTS["hpsv2.0"]
    torch.save({"state_dict": model.state_dict()}, file)
    images = pictures((300, 256), count=2)
    expected = scores_of(package, model, images, prompts[:2], file, monkeypatch)
    del model
    package.model_dict.clear()
    with torch.no_grad():
        found = HpsV2.load(tmp_path, "hpsv2.0").score(tensors(images), prompts[:2])
    file.unlink()  # four gigabytes
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences(tiny, prompts):
    reward = HpsV2.load(tiny[1], "hpsv2.1", dtype="float64")
    encoded = reward.encode_prompts(prompts)
    errors = directional_errors(lambda x: reward.score_encoded(x, encoded), tensors(pictures((64, 50))))
    assert errors.max() < 1e-4


def test_a_score_does_not_depend_on_its_company(tiny, prompts):
    reward, images = HpsV2.load(tiny[1], "hpsv2.1"), tensors(pictures((64, 64)))
    alone = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(reward.score(images, prompts), alone, rtol=0, atol=1e-6)


def test_one_version_is_not_taken_for_the_other(tiny):
    with pytest.raises(UserError, match=r"only has HPS_v2\.1_compressed\.pt, which is hpsv2\.1; put HPS_v2_comp"):
        HpsV2.load(tiny[1], "hpsv2.0")
    (tiny[1] / CHECKPOINTS["hpsv2.1"]).unlink()
    with pytest.raises(UserError, match=r"has no HPS_v2_compressed\.pt; put the files of HPSv2"):
        HpsV2.load(tiny[1], "hpsv2.0")


@pytest.mark.parametrize("content", [{"weights": {}}, {"state_dict": {"x": torch.zeros(1)}}, [torch.zeros(1)]])
def test_a_file_that_is_no_checkpoint_of_it_is_refused(tiny, content):
    torch.save(content, tiny[1] / CHECKPOINTS["hpsv2.1"])
    with pytest.raises(UserError, match=r"HPS_v2\.1_compressed\.pt"):
        HpsV2.load(tiny[1], "hpsv2.1")


def test_half_precision_scores_in_float32(tiny, prompts):
    images = tensors(pictures((64, 64))).requires_grad_()
    found = HpsV2.load(tiny[1], "hpsv2.1", dtype="bfloat16").score(images, prompts)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert images.grad.isfinite().all()
    torch.testing.assert_close(found, HpsV2.load(tiny[1], "hpsv2.1").score(images, prompts), rtol=0, atol=0.03)


def test_what_to_install_is_told(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"reward hpsv2\.1 needs open_clip: pip install 'ortho-em\[rewards\]'"):
        HpsV2.load(tiny[1], "hpsv2.1")
