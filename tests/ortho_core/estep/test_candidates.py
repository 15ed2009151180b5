"""Best of K base noises against the generator called once for each, and against the plain search from the winner."""

import itertools

import pytest
import torch

from ortho_core.errors import RunFailed
from ortho_core.estep.candidates import candidate_seeds
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine, assign_encoded
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.queue import Request
from ortho_core.estep.space import noise_space
from ortho_core.noise.prior import gaussian_prior
from ortho_core.noise.seeded import seeded_normal
from tests.ortho_core.estep.test_engine import Fragile, alone, requests

K = 5
SEEDS = list(range(8))


def loss_of(generator, seed, condition, target, image, config):
    """The total at one base noise, written out."""
    noise = seeded_normal([seed], generator.latent_shape)
    with torch.no_grad():
        latents = generator.denoise(noise, condition)
        loss = config.latent_loss_weight * (latents - target).square().mean()
        loss = loss + config.pixel_l1_weight * (generator.decode(latents) - image).abs().mean()
        if config.transform == "free":
            loss = loss + config.prior_weight * gaussian_prior(noise)[0]
    return float(loss)


def search(generator, batch, config, slots=3, seeds=SEEDS, **options):
    condition, images, targets = batch
    return assign_encoded(generator, seeds, condition, targets, images, config, slots=slots, **options)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"latent_loss_weight": 0.2, "pixel_l1_weight": 3.0, "drift_reg_weight": 0.5},
        {"transform": "free", "prior_weight": 20.0},
    ],
)
def test_the_pick_is_the_lowest_of_one_forward_each(generator, batch, settings):
    condition, images, targets = batch
    config = AssignConfig(candidates=K, steps=1, **settings)
    found = search(generator, batch, config)
    for i, one in enumerate(found):
        row = slice(i, i + 1)
        seeds = candidate_seeds(i, K)
        losses = [loss_of(generator, s, condition[row], targets[row], images[row], config) for s in seeds]
        assert one.seed == seeds[losses.index(min(losses))]
        # One step is the start of the search, where Q is the identity to 1e-4.
        assert one.best("total") == pytest.approx(min(losses), rel=2e-3)
        assert (one.evaluations, one.candidate_forwards) == (1, K)
        noise = noise_space(config, generator.latent_shape).noise(
            generator.base_noise([one.seed]), one.parameters[None]
        )
        torch.testing.assert_close(noise, seeded_normal([one.seed], generator.latent_shape), rtol=0, atol=1e-2)
    assert sum(one.seed != seed for one, seed in zip(found, SEEDS, strict=True)) > 2


def test_what_follows_is_the_search_from_the_winner_alone(generator, batch):
    found = search(generator, batch, AssignConfig(candidates=K, steps=6))
    plain = search(generator, batch, AssignConfig(steps=6), seeds=[one.seed for one in found])
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a.parameters, b.parameters)
        assert a.history["total"].tolist() == b.history["total"].tolist()
        assert (a.seed, b.candidate_forwards) == (b.seed, 0)


def test_more_candidates_begin_with_the_same_and_are_never_worse(generator, batch):
    assert candidate_seeds(7, 1) == [7]
    assert candidate_seeds(7, 9)[:4] == candidate_seeds(7, 4)
    assert len({seed for first in range(50) for seed in candidate_seeds(first, 8)}) == 400
    losses = [
        [one.initial_loss for one in search(generator, batch, AssignConfig(candidates=k, steps=1))] for k in (1, 4, 9)
    ]
    for few, more in itertools.pairwise(losses):
        assert all(b <= a * (1 + 1e-3) for a, b in zip(few, more, strict=True))
        assert sum(more) < sum(few)


@pytest.mark.parametrize("slots", [3, 5])  # an image's candidates lie in two batches; fill one
def test_an_image_gets_the_same_bits_in_any_company(generator, batch, slots):
    condition, _, targets = batch
    config = AssignConfig(candidates=K, steps=9, patience=2, stop_tolerance=0.02)  # images leave at different times
    together = search(generator, batch, config, slots)
    for i in (0, 7):
        one = alone(generator, i, condition, targets, config, slots)
        assert one.seed == together[i].seed
        assert torch.equal(one.parameters, together[i].parameters)
        assert one.history["total"].tolist() == together[i].history["total"].tolist()


def test_whoever_comes_while_nothing_was_at_hand_chooses_too(generator, batch):
    condition, _, targets = batch
    config = AssignConfig(candidates=K, steps=2)
    work = requests(generator, condition, targets, config)

    def feed():
        for request in work:
            yield request
            yield None

    found = sorted(Engine(generator, config, 3).run(feed()), key=lambda one: one.key)
    expected = search(generator, batch, config)
    assert [one.seed for one in found] == [one.seed for one in expected]
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(found, expected, strict=True))


def test_an_image_that_has_a_start_keeps_its_noise_beside_others_that_choose(generator, batch):
    config = AssignConfig(candidates=K, steps=4)
    first = search(generator, batch, config)
    starts = [one.parameters if i % 2 else None for i, one in enumerate(first)]
    seeds = [one.seed if i % 2 else i for i, one in enumerate(first)]
    again = search(generator, batch, config, seeds=seeds, starts=starts)
    for i, (a, b) in enumerate(zip(first, again, strict=True)):
        assert b.seed == a.seed
        assert b.candidate_forwards == (0 if i % 2 else K)
        assert b.initial_loss == pytest.approx(a.best("total") if i % 2 else a.initial_loss, rel=1e-5)


def test_out_of_memory_halves_the_slots_and_the_choice_is_the_same(generator, batch):
    condition, _, targets = batch
    config, heard = AssignConfig(candidates=K, steps=4), []
    engine = Engine(Fragile(generator, 3), config, 6, on_event=heard.append)
    found = sorted(engine.run(requests(generator, condition, targets, config)), key=lambda one: one.key)
    assert (engine.slots, len(heard)) == (3, 1)
    for a, b in zip(found, search(generator, batch, config), strict=True):
        assert (a.seed, a.candidate_forwards) == (b.seed, K)
        assert torch.equal(a.parameters, b.parameters)


class Tiring(Fragile):
    """One that holds fewer rows from its `after`-th call on."""

    def __init__(self, generator, most, after):
        super().__init__(generator, 1 << 30)
        self.later, self.left = most, after

    def denoise(self, noise, condition):
        self.left -= 1
        if not self.left:
            self.most = self.later
        return super().denoise(noise, condition)


def test_images_that_are_put_back_do_not_choose_again(generator, batch):
    condition, _, targets = batch
    config = AssignConfig(candidates=K, steps=4, sensitivity_rank=0)
    # Six slots and five candidates: six images are read and take five batches; the seventh call is a step.
    engine = Engine(Tiring(generator, 3, after=7), config, 6)
    found = sorted(engine.run(requests(generator, condition, targets, config)), key=lambda one: one.key)
    assert engine.slots == 3
    expected = search(generator, batch, config)
    assert [one.seed for one in found] == [one.seed for one in expected]
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(found, expected, strict=True))


class Broken(Fragile):
    """One whose images of the base noises of `seeds` are not finite."""

    def __init__(self, generator, seeds):
        super().__init__(generator, 1 << 30)
        self.noises = generator.base_noise(seeds)

    def denoise(self, noise, condition):
        latents = super().denoise(noise, condition)
        near = ((noise[:, None] - self.noises).abs().amax((2, 3, 4)) < 1e-2).any(1)
        return torch.where(near[:, None, None, None], torch.nan, latents)


def test_a_noise_whose_loss_is_not_finite_is_not_chosen(generator, batch):
    condition, _, targets = batch
    config = AssignConfig(candidates=2, steps=1)
    inputs = Reconstruction(generator, config).inputs(condition, targets, None)
    work = [Request(i, i, {name: tensor[i] for name, tensor in inputs.items()}) for i in range(3)]
    pairs = [candidate_seeds(i, 2) for i in range(3)]
    broken = Broken(generator, [pairs[0][0], pairs[1][1], *pairs[2]])
    found = sorted(Engine(broken, config, 4).run(work), key=lambda one: one.key)
    assert [one.seed for one in found] == [pairs[0][1], pairs[1][0], pairs[2][0]]
    assert [one.failed for one in found] == [False, False, True]  # where none is finite, the row is to be quarantined


def test_images_are_read_ahead_as_far_as_batches_are_filled(generator, batch):
    condition, _, targets = batch
    config, taken = AssignConfig(candidates=4, steps=2), []

    def feed():
        for request in requests(generator, condition, targets, config):
            taken.append(request.key)
            yield request

    running = Engine(generator, config, 2).run(feed())  # four candidates are two whole batches: one image at a time
    next(running)
    assert len(taken) <= 5
    assert len(list(running)) == 7


def test_a_source_that_runs_out_of_memory_while_it_is_read_ahead_ends_the_search(generator, batch):
    condition, _, targets = batch
    config = AssignConfig(candidates=K, steps=2)

    def feed():
        yield from requests(generator, condition, targets, config)[:3]
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RunFailed, match="out of memory while images were encoded"):
        list(Engine(generator, config, 4).run(feed()))
