"""`imagereward` against the `image-reward` package's own `score`, on weights in the published format."""

import importlib.util
import json
import sys
import warnings

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import modeling_utils
from transformers.utils import logging

from ortho_core.errors import UserError
from ortho_core.rewards import imagereward
from ortho_core.rewards.imagereward import CONFIG, VOCABULARY, WEIGHTS, ImageReward
from tests.ortho_core.rewards.conftest import directional_errors, pictures, tensors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *["a", "red", "fox", "in", "the", "snow", "two", "boat", "very", "long", "prompt", ",", "##s"]]
#: The published med_config.json.
MED = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def make(folder, med, words):
    """A folder as a user has it, with random weights, and the package's own model of them."""
    (folder / CONFIG).write_text(json.dumps(med))
    (folder / VOCABULARY).write_text("".join(f"{word}\n" for word in words))
    package, blip = imagereward._package()
    tokenizer = imagereward._tokenizer(folder / VOCABULARY)
    blip.init_tokenizer = lambda: tokenizer
    torch.manual_seed(0)
    model = package.ImageReward(med_config=str(folder / CONFIG)).eval()
    with torch.no_grad():  # as they are at first, two pictures' scores differ in the seventh digit
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and ("crossattention" in name or name.startswith("mlp")):
                weight.normal_(std=weight.shape[1] ** -0.5)
    torch.save(model.state_dict(), folder / WEIGHTS)
    return model


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The published format with a vision transformer of two layers and a BERT of one."""
    _, blip = imagereward._package()
    vit = sys.modules[f"{imagereward.PRIVATE}.models.BLIP.vit"].VisionTransformer

    def create_vit(size, image_size, *_):
        return vit(img_size=image_size, patch_size=16, embed_dim=64, depth=2, num_heads=4), 64

    monkeypatch.setattr(blip, "create_vit", create_vit)
    small = {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": len(WORDS) + 2}
    return make(tmp_path, MED | small, WORDS), tmp_path


@pytest.mark.parametrize(("size", "tolerance"), [((224, 224), 1e-5), ((64, 64), 2e-2), ((300, 401), 2e-2)])
def test_it_is_what_the_package_scores(tiny, prompts, size, tolerance):
    """Of pictures that have to be resized up to the rounding to whole grey levels, which has no gradient and is left out."""
    model, folder = tiny
    images = pictures(size)
    expected = torch.tensor([model.score(prompt, image) for prompt, image in zip(prompts, images, strict=True)])
    with torch.no_grad():
        reward = ImageReward.load(folder)
        found = reward.score(tensors(images), prompts)
        pictured = reward.score(tensors(images), prompts[:1] * 4)
    assert pictured.std() > 0.01  # pictures of one prompt are told apart
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=tolerance * float(pictured.std()))


@pytest.mark.slow
def test_it_is_what_the_package_scores_at_full_size(tmp_path, prompts):
    words = WORDS + [f"word{i}" for i in range(30522 - len(WORDS))]
    model = make(tmp_path, MED, words)
    images = pictures((224, 224), count=2)
    expected = torch.tensor([model.score(prompts[i], image) for i, image in enumerate(images)])
    del model
    with torch.no_grad():
        found = ImageReward.load(tmp_path).score(tensors(images), prompts[:2])
    (tmp_path / WEIGHTS).unlink()  # two gigabytes
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_its_gradient_is_that_of_finite_differences(tiny, prompts):
    reward = ImageReward.load(tiny[1], dtype="float64")
    encoded = reward.encode_prompts(prompts)
    errors = directional_errors(lambda x: reward.score_encoded(x, encoded), tensors(pictures((230, 224))))
    assert errors.max() < 1e-4


def test_a_score_and_a_prompts_row_do_not_depend_on_their_company(tiny, prompts):
    reward, images = ImageReward.load(tiny[1]), tensors(pictures((64, 64)))
    encoded = reward.encode_prompts(prompts)
    assert torch.equal(reward.encode_prompts(prompts[1:2])["tokens"], encoded["tokens"][1:2])
    alone = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(reward.score(images, prompts), alone, rtol=1e-5, atol=1e-5)


def test_prompts_are_cut_and_split_as_bert_does(tiny, prompts):
    encoded = ImageReward.load(tiny[1]).encode_prompts([*prompts, "The FOXS, Boats"])
    independent = BertWordPieceTokenizer(str(tiny[1] / VOCABULARY), lowercase=True)
    independent.enable_padding(length=35)
    independent.enable_truncation(35)
    expected = independent.encode_batch([*prompts, "The FOXS, Boats"])
    assert encoded["tokens"].tolist() == [e.ids for e in expected]
    assert encoded["attended"].tolist() == [e.attention_mask for e in expected]


def test_nothing_of_the_import_is_left_behind():
    def state():
        return set(vars(modeling_utils)), list(warnings.filters), logging.get_verbosity()

    before = state()
    with imagereward._older_libraries():
        assert all(hasattr(modeling_utils, name) for name in imagereward.MISSING)
        warnings.filterwarnings("ignore")  # as the package does
        logging.set_verbosity_error()
    assert state() == before
    imagereward._package()
    assert state() == before


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG, VOCABULARY])
def test_a_missing_file_is_named(tiny, missing):
    (tiny[1] / missing).unlink()
    with pytest.raises(UserError, match=f"reward imagereward: .*has no {missing}; put the files of ImageReward v1.0"):
        ImageReward.load(tiny[1])


def test_another_vocabulary_is_refused(tiny):
    (tiny[1] / VOCABULARY).write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(UserError, match=r"states a vocab_size of 20, but vocab\.txt next to it has 17 lines"):
        ImageReward.load(tiny[1])
    (tiny[1] / CONFIG).write_text("{")
    with pytest.raises(UserError, match="is not the model's configuration"):
        ImageReward.load(tiny[1])


def test_weights_that_are_not_all_there_are_refused(tiny):
    weights = torch.load(tiny[1] / WEIGHTS, weights_only=True)
    for unused in ("blip.vision_proj.weight", "blip.text_encoder.embeddings.position_ids"):
        del weights[unused]
    torch.save(weights, tiny[1] / WEIGHTS)
    ImageReward.load(tiny[1])
    del weights["mlp.layers.0.weight"]
    torch.save(weights, tiny[1] / WEIGHTS)
    with pytest.raises(UserError, match=r"ImageReward\.pt does not fit the model: no mlp\.layers\.0\.weight"):
        ImageReward.load(tiny[1])


def test_half_precision_scores_in_float32(tiny, prompts):
    images = tensors(pictures((64, 64))).requires_grad_()
    found = ImageReward.load(tiny[1], dtype="bfloat16").score(images, prompts)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert images.grad.isfinite().all()
    expected = ImageReward.load(tiny[1]).score(images, prompts)
    assert torch.corrcoef(torch.stack([found, expected]).detach())[0, 1] > 0.95


def test_what_to_install_is_told(tiny, monkeypatch):
    monkeypatch.setattr(imagereward, "PRIVATE", "not_imported_yet")
    real = importlib.util.find_spec
    for missing in ("ImageReward", "fairscale", "timm"):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, gone=missing: None if name == gone else real(name)
        )
        with pytest.raises(
            UserError, match=r"needs image-reward, fairscale and timm: pip install --no-deps image-reward"
        ):
            ImageReward.load(tiny[1])
