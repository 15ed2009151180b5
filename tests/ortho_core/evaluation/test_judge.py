"""What a judge says of images, against its models called alone."""

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from ortho_core.evaluation.features import TINY_CLIP, find_lpips
from ortho_core.rewards.combined import load_rewards
from tests.ortho_core.evaluation.judges import TEXTS, judges, pictures


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
