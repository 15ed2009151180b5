"""Matching before an update against the E-step's own search with the same weights."""

import copy

import pytest
import torch
from torch import nn

from ortho_core.estep.config import MEASURED_WITH, AssignConfig, ReconstructionWeights
from ortho_core.estep.engine import assign_encoded
from ortho_core.estep.space import noise_space
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.losses import mean_square
from ortho_core.mstep.config import MatchingConfig
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.matching import OnlineMatching, match_search
from ortho_core.noise.rotation import patchify

SEEDS = list(range(8))


@pytest.fixture
def moved(tiny_turbo):
    """A generator in training whose weights are no longer those that it was loaded with."""
    generator = load_generator(ModelFolder.open(tiny_turbo))
    network = generator.trainable.requires_grad_(True).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape))
    return generator


@pytest.fixture
def data(batch, moved):
    condition, images, targets = batch
    return SftBatch(moved.base_noise(SEEDS), condition, targets, images, None, None)


def matching(generator, parts=1, **options):
    search = match_search(MatchingConfig(match_steps="4"), ReconstructionWeights(**options), None)
    return OnlineMatching(generator, list(generator.trainable.parameters()), search, parts)


def error(generator, noise, batch):
    with torch.no_grad():
        return mean_square(generator.denoise(noise, batch.condition), batch.target_latents)


@pytest.mark.parametrize("weights", [{}, {"latent_loss_weight": 0.5, "pixel_l1_weight": 0.3}])
def test_it_is_the_search_of_the_e_step_with_the_weights_of_the_moment(moved, data, weights):
    found, totals = matching(moved, **weights)(data, 4)
    search = AssignConfig(steps=4, patience=0, **weights)
    zeros = [torch.zeros(noise_space(search, moved.latent_shape).parameters)] * 8
    own = assign_encoded(moved, SEEDS, data.condition, data.target_latents, data.images, search, slots=8, starts=zeros)
    expected = noise_space(search, moved.latent_shape).noise(data.noise, torch.stack([one.parameters for one in own]))
    assert torch.equal(found.noise, expected)
    losses = [[one.initial_loss, one.best("total")] for one in own]
    torch.testing.assert_close(totals, torch.tensor(losses).mean(0))
    assert totals[1] < 0.9 * totals[0]
    for name in ("condition", "target_latents", "images"):
        assert getattr(found, name) is getattr(data, name)


def test_the_noise_that_is_found_is_the_rows_own_rotated(moved, data):
    found, _ = matching(moved)(data, 4)
    norms, before = (patchify(noise, 2).norm(dim=2) for noise in (found.noise, data.noise))
    torch.testing.assert_close(norms, before, rtol=1e-5, atol=1e-5)
    assert (found.noise - data.noise).square().mean((1, 2, 3)).min() > 1e-3


def test_a_row_is_found_the_same_whatever_was_searched_before_and_beside_it(moved, data):
    one = matching(moved, 2)
    one(data, 3)
    (a, _), (b, _) = one(data, 4), matching(moved, 2)(data, 4)
    assert torch.equal(a.noise, b.noise)
    order = [5, 1, 7, 0, 2, 6, 3, 4]
    other = SftBatch(
        data.noise[order], data.condition[order], data.target_latents[order], data.images[order], None, None
    )
    c, _ = one(other, 4)
    assert torch.equal(c.noise, a.noise[order])


def test_the_weights_get_no_gradient_and_ask_for_it_again_afterwards(moved, data):
    network, seen = moved.trainable, []
    frozen = next(network.parameters()).requires_grad_(False)
    hook = network.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, any(p.requires_grad for p in module.parameters())))
    )
    trained = [p for p in network.parameters() if p.requires_grad]
    search = match_search(MatchingConfig(), ReconstructionWeights(), None)
    OnlineMatching(moved, trained, search)(data, 2)
    hook.remove()
    assert set(seen) == {(False, False)}
    assert len(seen) == 2 + MEASURED_WITH // 8
    assert network.training
    assert not frozen.requires_grad
    assert all(p.requires_grad and p.grad is None for p in trained)


def test_a_row_that_is_not_finite_keeps_its_noise_and_leaves_the_others_alone(moved, data):
    targets = data.target_latents.clone()
    targets[2] = float("nan")
    one = matching(moved)
    expected, _ = one(data, 4)
    found, totals = one(SftBatch(**{**vars(data), "target_latents": targets}), 4)
    others = [k for k in range(8) if k != 2]
    assert torch.equal(found.noise[others], expected.noise[others])
    torch.testing.assert_close(found.noise[2], data.noise[2])
    assert not totals.isfinite().any()


def test_what_it_answers_to_is_measured_once_or_when_told_and_goes_with_the_state(moved, data):
    one = matching(moved)
    one(data, 1)
    (first,) = copy.copy(list(one.sensitivities.values()))
    with torch.no_grad():
        nn.utils.parameters_to_vector(moved.trainable.parameters())
        for parameter in moved.trainable.parameters():
            parameter.mul_(1.05)
    expected, _ = one(data, 4)
    assert list(one.sensitivities.values()) == [first]
    other = matching(moved)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(data, 4)[0].noise, expected.noise)
    other(data, 4, measures=True)
    (again,) = other.sensitivities.values()
    assert not torch.equal(again.directions, first.directions)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_network_computes_with_less_and_the_rotations_do_not(moved, data, half):
    search = match_search(MatchingConfig(match_steps="4"), ReconstructionWeights(), None)
    found, totals = OnlineMatching(moved, [], search, half=half)(data, 4)
    exact, expected = matching(moved)(data, 4)
    torch.testing.assert_close(totals, expected, rtol=0.02, atol=0)
    assert not torch.equal(found.noise, exact.noise)
    assert found.noise.dtype == torch.float32
    torch.testing.assert_close(
        patchify(found.noise, 2).norm(dim=2), patchify(data.noise, 2).norm(dim=2), rtol=1e-5, atol=1e-5
    )


def test_an_adapter_is_matched_with(moved, data, generator):
    own = load_generator(ModelFolder.open(moved.folder.path))
    add_lora(own.trainable, Lora(2, 2.0), seed=0)
    adapters = [p for p in own.trainable.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in adapters:
            parameter.add_(0.1)
    search = match_search(MatchingConfig(match_steps="4"), ReconstructionWeights(), None)
    found, totals = OnlineMatching(own, adapters, search)(data, 4)
    torch.testing.assert_close(error(own, found.noise, data).mean(), totals[1], rtol=1e-4, atol=0)
    assert abs(error(generator, found.noise, data).mean() - totals[1]) > 1e-3
    assert all(p.requires_grad for p in adapters)
    assert sum(p.requires_grad for p in own.trainable.parameters()) == len(adapters)


def test_evaluations_go_evenly_from_the_first_number_to_the_last():
    config = MatchingConfig(match_steps="8:2", match_sensitivity_every=3)
    steps = [config.match_steps_at(k, 7) for k in range(7)]
    assert steps == [8, 7, 6, 5, 4, 3, 2]
    assert config.most_match_steps == 8
    assert [k for k in range(7) if config.match_measures_at(k)] == [0, 3, 6]
    assert config.match_evaluations(7, 16) == 16 * 35 + 3 * MEASURED_WITH
    constant = MatchingConfig(match_steps=6)
    assert constant.match_evaluations(10, 4) == 240 + MEASURED_WITH
    assert [k for k in range(10) if constant.match_measures_at(k)] == [0]
    with pytest.raises(ValueError, match="match_steps"):
        MatchingConfig(match_steps="0")


def test_the_size_at_a_noise_is_the_generator_s_own_or_follows_from_its_factor(moved):
    """Also for flat noise, whose images need not be squares."""

    class Flat:
        latent_shape, image_size = (16, 1, 1), (28, 20)

    one = matching(moved)
    assert one._size_of(torch.zeros(2, 4, 8, 8)) == (32, 32)
    assert one._size_of(torch.zeros(2, 4, 6, 10)) == (24, 40)
    one.generator = Flat()
    assert one._size_of(torch.zeros(2, 16, 1, 1)) == (28, 20)
