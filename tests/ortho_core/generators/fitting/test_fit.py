"""Fitting a class-conditional generator: the choice of noises, the order of images, the learning itself, its diversity."""

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.fitting.class_groups import Groups
from ortho_core.generators.fitting.config import FitConfig
from ortho_core.generators.fitting.discriminator import Discriminator
from ortho_core.generators.fitting.diversity import Diversity, diversity, mean_distance
from ortho_core.generators.fitting.fit import FitBatch, make_fit, terms_of

CLASSES = ("bar", "dot")
CONFIG = ClassConfig(classes=CLASSES, noise_shape=(6, 1, 1), image_shape=(1, 8, 8), widths=(8, 8), condition=8)


def make(seed=0) -> ClassGenerator:
    torch.manual_seed(seed)
    return ClassGenerator(CONFIG, ClassNetwork(CONFIG))


def batch(update=0, groups=2, group_size=4, noises=8) -> FitBatch:
    """Bars in any column and dots in any place: classes whose images differ."""
    draw = torch.Generator().manual_seed(update)
    images = torch.full((groups, group_size, 1, 8, 8), -1.0)
    kinds = torch.arange(groups) % 2
    for g, kind in enumerate(kinds):
        for image in images[g, :, 0]:
            at = int(torch.randint(8, (1,), generator=draw))
            image[:, at] = 1.0 if kind == 0 else image[:, at]
            image[at, at] = 1.0
    noise = torch.randn(groups, noises, 6, 1, 1, generator=draw)
    return FitBatch(images, torch.eye(2)[kinds], noise)


def test_each_image_takes_the_noise_of_its_group_whose_output_is_nearest():
    fit = make_fit(make(), FitConfig(group_size=4, nearest_of=8), 10)
    given = batch()
    chosen = fit.nearest(given)
    for g in range(2):
        for r in range(4):
            apart = []
            for noise in given.noise[g]:
                with torch.no_grad():
                    made = fit.learner.network(noise[None], given.classes[[g]])[0]
                apart.append(float((made.double() - given.images[g, r].double()).square().sum()))
            assert torch.equal(chosen[g, r], given.noise[g, int(np.argmin(apart))])


@pytest.mark.parametrize("objective", ["imle", "gan"])
def test_a_fit_that_is_taken_up_again_goes_on_as_if_undisturbed(objective):
    config = FitConfig(objective=objective, group_size=4)
    whole, first = (make_fit(make(), config, 4) for _ in range(2))  # the discriminators too begin from the seed
    second = make_fit(make(9), config, 4)
    batches = [batch(u, noises=config.noises) for u in range(4)]
    expected = [whole.update(b) for b in batches]
    found = [first.update(b) for b in batches[:2]]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    found += [second.update(b) for b in batches[2:]]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=0)
    assert terms_of(config)[0] == "loss"


def test_the_nearest_fit_learns_and_its_noise_decides_the_image():
    generator = make()
    config = FitConfig(group_size=8, nearest_of=16, lr=1e-2)
    fit = make_fit(generator, config, 120)
    losses = [float(fit.update(batch(u, group_size=8, noises=16))[0]) for u in range(120)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    real = [g[:, 0][:, None] for g in batch(1000, group_size=32).images]
    told = diversity(generator, CLASSES, real)
    assert told.too_little == []
    assert 0.2 < told.mean < 1.5


def test_the_discriminator_learns_to_tell_and_the_generator_follows_it():
    generator = make()
    config = FitConfig(objective="gan", group_size=8, lr=1e-3)
    torch.manual_seed(1)
    fit = make_fit(generator, config, 60)
    terms = torch.stack([fit.update(batch(u, group_size=8, noises=16)) for u in range(60)])
    assert terms.isfinite().all()
    assert terms[50:, 1].mean() < terms[:5, 1].mean()
    given = batch(500, group_size=8)
    with torch.no_grad():
        made = generator.network(given.noise[:, :8].flatten(0, 1), given.classes.repeat_interleave(8, 0))
    before = make().network(given.noise[:, :8].flatten(0, 1), given.classes.repeat_interleave(8, 0))
    # Nearer to what is real than it began: most of each image is dark.
    assert made.mean() < before.mean() - 0.1


def test_the_discriminator_has_a_score_per_image_that_hangs_on_its_class():
    torch.manual_seed(0)
    network = Discriminator((3, 28, 28), 2).eval()
    images = torch.randn(4, 3, 28, 28)
    scores = [network(images, torch.eye(2)[[k] * 4]) for k in (0, 1)]
    assert scores[0].shape == (4,)
    assert not torch.equal(*scores)
    torch.testing.assert_close(network(images[[2]], torch.eye(2)[[0]])[0], scores[0][2])


def test_diversity_is_the_mean_distance_over_all_pairs_beside_the_datas():
    images = torch.randn(5, 1, 8, 8)
    pairs = [(a, b) for a in range(5) for b in range(a)]
    expected = np.mean([float((images[a] - images[b]).square().mean().sqrt()) for a, b in pairs])
    assert mean_distance(images) == pytest.approx(expected, rel=1e-5)
    generator = make()
    real = [torch.rand(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)]
    told = diversity(generator, CLASSES, real)
    assert list(told.by_class) == ["bar"]  # equal images have no distance
    with torch.no_grad():
        generator.network.enter[1].weight.zero_()
        generator.network.styles.weight.zero_()
    deaf = diversity(generator, CLASSES, [torch.rand(4, 1, 8, 8)] * 2)
    assert deaf.too_little == ["bar", "dot"]
    assert "IGNORES ITS NOISE in 2 of 2 classes" in deaf.sentence()
    assert "IGNORES" not in Diversity({"bar": 0.9, "dot": 0.5}).sentence()
    assert "lowest in class 'dot': 0.50" in Diversity({"bar": 0.9, "dot": 0.5}).sentence()


def test_groups_are_of_one_class_and_every_worker_count_sees_the_same():
    labels = np.array([0] * 13 + [1] * 22 + [3] * 4)
    groups = Groups(labels, 4, 2, seed=7)
    assert (groups.groups, groups.updates) == (3 + 5 + 1, 4)
    for epoch in range(2):
        seen = np.concatenate([groups.share(epoch, step) for step in range(4)])
        assert seen.shape == (8, 4)
        assert len(np.unique(seen)) == 32
        assert all(len(set(labels[group])) == 1 for group in seen)
        halves = [np.concatenate([groups.share(epoch, s, r, 2) for r in range(2)]) for s in range(4)]
        assert np.array_equal(np.concatenate(halves), seen)
    again = Groups(labels, 4, 2, seed=7)
    assert np.array_equal(again.share(1, 0), groups.share(1, 0))
    assert not np.array_equal(groups.share(0, 0), groups.share(1, 0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"objective": "gan", "nearest_of": 8}, "nearest_of applies to --objective imle"),
        ({"nearest_of": 8}, "nearest_of is less than the 16 images of a group"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, says):
    with pytest.raises(ValidationError, match=says):
        FitConfig(**options)


def test_what_is_not_given_follows_the_objective():
    assert (FitConfig().noises, FitConfig().rate) == (64, 2e-3)
    gan = FitConfig(objective="gan")
    assert (gan.noises, gan.rate) == (32, 2e-4)
