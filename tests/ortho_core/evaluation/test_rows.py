"""Samples, the models that look at them, and what a worker makes of a row."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from ortho_core.errors import UserError
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.evaluation.features import INCEPTION, TINY_CLIP, find_features, find_lpips
from ortho_core.evaluation.judge import Judge, JudgeModels
from ortho_core.evaluation.rows import EvaluationRows
from ortho_core.evaluation.samples import (
    from_png,
    laplacian_energy,
    mean_pairwise_distance,
    rms_distance,
    sample,
    to_png,
)
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs import PairSet
from ortho_core.pictures import to_bytes
from ortho_core.rewards import load_rewards

TEXTS = ["a red handwritten three on a white background", "a blue handwritten one on a black background"]


def pictures(count, size=32, seed=0):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def judges(**options):
    tiny = find_features("tiny-clip", TINY_CLIP.parent)
    usual = {"features": tiny, "cmmd": None, "rewards": "clip", "reward_folders": {"clip": TINY_CLIP}, "lpips": None}
    return Judge(JudgeModels(**{**usual, **options}), "cpu")


def test_pairwise_distance_is_that_of_every_pair():
    images = pictures(5, 4)
    x = images.double().numpy() / 255
    pairs = [np.sqrt(((x[i] - x[j]) ** 2).mean()) for i in range(5) for j in range(i)]
    assert mean_pairwise_distance(images) == pytest.approx(np.mean(pairs))


def test_drift_is_the_rms_pixel_distance():
    base = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    moved = base.clone()
    moved[0], moved[1, 0] = 51, 255
    assert rms_distance(moved, base) == pytest.approx([0.2, np.sqrt(1 / 3), 0.0])


def test_laplacian_energy_is_that_of_scipys_laplacian_away_from_the_edge():
    for image in pictures(3, 12):
        luma = np.tensordot([0.299, 0.587, 0.114], image.numpy() / 255, 1)
        expected = (ndimage.laplace(luma)[1:-1, 1:-1] ** 2).mean()
        assert laplacian_energy(image) == pytest.approx(expected, rel=1e-9)
    assert laplacian_energy(pictures(1, 12)[0, :, :7]) > 0  # not square


def test_blur_lowers_the_laplacian_energy_and_flat_images_have_none(digits):
    with Image.open(next(iter(sorted((digits / "images").iterdir())))) as picture:
        sharp = picture.convert("RGB")
    copies = [sharp, *(sharp.filter(ImageFilter.GaussianBlur(radius)) for radius in (0.5, 1, 2))]
    energies = [laplacian_energy(torch.from_numpy(np.array(copy)).permute(2, 0, 1)) for copy in copies]
    assert energies == sorted(energies, reverse=True)
    assert energies[2] < 0.2 * energies[0]
    flat = torch.tensor([17, 91, 203], dtype=torch.uint8)[:, None, None].expand(3, 9, 9)
    rising = flat // 2 + 3 * torch.arange(9, dtype=torch.uint8)
    assert [laplacian_energy(image) for image in (flat, rising)] == [0, 0]
    assert np.isnan(laplacian_energy(flat[..., :2]))  # no inner pixels


def test_pictures_survive_being_kept():
    image = pictures(1)[0]
    assert torch.equal(from_png(to_png(image)), image)


def test_samples_do_not_depend_on_the_batch(generator):
    cache, seeds = PromptCache(generator), [noise_seed(0, i) for i in range(6)]
    apart = sample(generator, cache, TEXTS * 3, seeds, 1).int()
    assert (apart - sample(generator, cache, TEXTS * 3, seeds, 4).int()).abs().max() <= 1


def test_the_judges_see_what_their_models_see_alone():
    judge, images = judges(), pictures(2).float() / 255
    seen = judge.look(images, TEXTS)
    rewards = load_rewards("clip", {"clip": TINY_CLIP})
    tower = rewards.rewards["clip"].tower
    assert judge.extractors["features"].tower is judge.rewards.rewards["clip"].tower
    assert seen.rewards["clip"].tolist() == pytest.approx(rewards.score(images, TEXTS).tolist(), abs=1e-5)
    assert torch.allclose(
        torch.nn.functional.normalize(seen.features["features"]), tower.embed_images(images), atol=1e-5
    )
    assert not judge.look(images).rewards
    compared = judge.compare(images, images.flip(0))
    error = ((images - images.flip(0)) ** 2).flatten(1).mean(1)
    assert compared["psnr"].tolist() == pytest.approx((-10 * error.log10()).tolist())
    alone = [
        structural_similarity_index_measure(images[i : i + 1], images[1 - i : 2 - i], data_range=1.0) for i in (0, 1)
    ]
    assert compared["ssim"].tolist() == pytest.approx([float(value) for value in alone], abs=1e-6)
    assert "lpips" not in compared
    assert "ssim" not in judge.compare(images[..., :8, :8], images[..., :8, :8])


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


def test_lpips_takes_its_network_from_the_users_file_and_downloads_nothing(tmp_path):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    network = squeezenet1_1(weights=None).features.eval()
    file = tmp_path / "squeezenet1_1-own.pth"
    torch.save({f"features.{name}": value for name, value in network.state_dict().items()}, file)
    judge = judges(rewards=None, lpips=find_lpips(str(tmp_path)))
    images, others = pictures(2).float() / 255, pictures(2, seed=1).float() / 255
    found = judge.compare(images, others)["lpips"]
    assert judge.compare(images, images)["lpips"].tolist() == [0, 0]
    # The formula by hand: unit feature vectors, squared differences, the package's learned weights, mean over places.
    mean, std = (torch.tensor(v)[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    a, b = (((2 * x - 1) - mean) / std for x in (images, others))
    expected, at = torch.zeros(2), [1, 4, 7, 9, 10, 11, 12]
    weights = [layer.model[-1].weight for layer in judge.lpips.model.lins]
    with torch.no_grad():
        for i, layer in enumerate(network):
            a, b = layer(a), layer(b)
            if i in at:
                units = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
                apart = (units[0] - units[1]).square() * weights[at.index(i)]
                expected += apart.sum(1).flatten(1).mean(1)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


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


def test_records_of_a_row_are_what_its_own_images_give(generator, digits):
    """The records of seven rows, against the images that they keep; in other company they are the same."""
    pairs = PairSet(digits / "heldout.jsonl")
    judge, config = judges(), AssignConfig(steps=3, patience=0)

    def records(count):
        objective = Reconstruction(generator, config)
        rows = EvaluationRows(objective, PromptCache(generator), pairs, judge, seed=0, is_base=True)
        engine = Engine(generator, config, 4, objective)
        assigner = ShardAssigner(engine, rows, RecordConfig(0, "parameters", "a", "b"))
        return assigner.assign(pairs.shards(count)[0]).rows, rows

    (found, rows), (fewer, _) = records(7), records(3)
    for row, again in zip(found, fewer, strict=False):
        assert row["latent_mse"] == pytest.approx(again["latent_mse"], rel=1e-4)
        assert row["sample"] == again["sample"]
    shard = pairs.shards(7)[0]
    targets = torch.from_numpy(np.stack(pairs.images(list(pairs.read(shard)), generator.image_size))).permute(
        0, 3, 1, 2
    )
    kept = {name: torch.stack([from_png(row[name]) for row in found]) for name in ("target", "closest", "sample")}
    assert torch.equal(kept["target"], targets)
    error = ((kept["closest"].double() - targets.double()) / 255).square().flatten(1).mean(1)
    assert [row["psnr"] for row in found] == pytest.approx((-10 * error.log10()).tolist(), abs=1e-3)
    prompts = [row["prompt"] for row in found]
    seen = judge.look(kept["sample"].float() / 255, prompts)
    assert [dict(row["rewards"])["clip"] for row in found] == pytest.approx(seen.rewards["clip"].tolist(), abs=1e-5)
    assert np.stack([row["features"] for row in found]) == pytest.approx(seen.features["features"].numpy(), abs=1e-3)
    seeds = [noise_seed(0, "evaluate", row["sample_id"]) for row in found]
    alone = sample(generator, PromptCache(generator), prompts, seeds, 1)
    assert (alone.int() - kept["sample"].int()).abs().max() <= 1
    assert not np.allclose(found[0]["other_features"], found[0]["features"])
    (spread,) = rows.spread([TEXTS[0]])
    seeds = [noise_seed(0, "diversity", i) for i in range(8)]
    images = sample(generator, PromptCache(generator), TEXTS[:1] * 8, seeds, 8)
    assert spread == pytest.approx(mean_pairwise_distance(images), rel=1e-3)
    assert torch.equal(to_bytes(targets.float() / 255), targets)
