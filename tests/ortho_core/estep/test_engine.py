"""The E-step against the reference method written out, and against itself in other company."""

import numpy as np
import pytest
import torch

from ortho_core.errors import RunFailed, UserError
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine, assign_encoded
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.queue import Request
from ortho_core.estep.space import noise_space
from ortho_core.noise.rotation import unpack_skew
from ortho_core.noise.spaces import Rotations


def reference_losses(generator, seed, condition, target, image, config):
    """The reference: one image, a raw d × d matrix, torch's own AdamW, everything in plain steps."""
    base = generator.base_noise([seed])
    C, H, W = generator.latent_shape
    p = config.patch_size
    d = C * p * p
    # A = raw - rawᵀ of the engine's start: its upper triangle, nothing below.
    start = Rotations(generator.latent_shape, p).start([seed])
    raw = torch.triu(unpack_skew(start, d)[0], diagonal=1).requires_grad_(True)
    optimizer = torch.optim.AdamW([raw], lr=config.lr, betas=(0.9, 0.999), weight_decay=0.0)
    losses = []
    for _ in range(config.steps):
        A = raw - raw.T
        Q = torch.linalg.solve(torch.eye(d) + A, torch.eye(d) - A)
        patches = base.reshape(C, H // p, p, W // p, p).permute(1, 3, 0, 2, 4).reshape(-1, d)
        noise = (patches @ Q.T).reshape(H // p, W // p, C, p, p).permute(2, 0, 3, 1, 4).reshape(1, C, H, W)
        latents = generator.denoise(noise, condition)
        loss = config.latent_loss_weight * (latents - target).square().mean()
        loss = loss + config.pixel_l1_weight * (generator.decode(latents) - image).abs().mean()
        loss = loss + config.drift_reg_weight * (noise - base).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_adamw_reproduces_the_reference_whatever_shares_the_slots(generator, batch):
    condition, images, targets = batch
    config = AssignConfig(optimizer="adamw", lr=5e-4, steps=12, pixel_l1_weight=0.5, drift_reg_weight=0.1)
    # Two slots for three images: the third enters where the first left, with moments and step count of its own.
    found = assign_encoded(generator, [11, 12, 13], condition[:3], targets[:3], images[:3], config, slots=2)
    for i, seed in enumerate((11, 12, 13)):
        one = slice(i, i + 1)
        expected = reference_losses(generator, seed, condition[one], targets[one], images[one], config)
        assert found[i].history["total"].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_lowest_iterate_is_kept(generator, batch):
    condition, images, targets = batch
    config = AssignConfig(optimizer="adamw", lr=0.3, steps=10)  # far too large a rate: the loss goes up and down
    found = assign_encoded(generator, list(range(8)), condition, targets, images, config)
    assert any(one.history["total"][-1] > one.history["total"].min() for one in found)
    parameters = torch.stack([one.parameters for one in found])
    noise = noise_space(config, generator.latent_shape).noise(generator.base_noise(list(range(8))), parameters)
    again = (generator.denoise(noise, condition) - targets).square().mean((1, 2, 3))
    for one, loss in zip(found, again.tolist(), strict=True):
        assert one.best("total") == one.history["total"].min() == pytest.approx(loss, rel=1e-4)


def mean_loss(found, evaluations=None):
    return float(np.mean([one.history["total"][:evaluations].min() for one in found]))


def test_lbfgs_gets_further_than_the_reference_on_a_quarter_of_the_evaluations(generator, batch):
    condition, _, targets = batch
    reference = assign_encoded(
        generator, list(range(8)), condition, targets, None, AssignConfig(optimizer="adamw", steps=24)
    )
    ours = assign_encoded(generator, list(range(8)), condition, targets, None, AssignConfig(steps=6))
    assert mean_loss(ours) < mean_loss(reference)
    assert [one.initial_loss for one in ours] == [one.initial_loss for one in reference]


def test_knowing_what_the_generator_answers_to_saves_evaluations(generator, batch):
    condition, _, targets = batch
    losses = {}
    for rank in (0, 4):
        config = AssignConfig(steps=6, sensitivity_rank=rank)
        losses[rank] = mean_loss(assign_encoded(generator, list(range(8)), condition, targets, None, config))
    assert losses[4] < losses[0]


def alone(generator, i, condition, target, config, slots):
    """Image i on its own, in an engine of as many slots."""
    inputs = Reconstruction(generator, config).inputs(condition[[i]], target[[i]], None)
    request = Request(i, i, {name: tensor[0] for name, tensor in inputs.items()})
    (found,) = Engine(generator, config, slots).run([request])
    return found


@pytest.mark.parametrize("p", [2, 4, 8])
def test_an_image_gets_the_same_bits_whatever_shares_the_slots(generator, batch, p):
    condition, _, targets = batch
    config = AssignConfig(patch_size=p, steps=9, patience=2, stop_tolerance=0.02)  # images leave at different times
    together = assign_encoded(generator, list(range(8)), condition, targets, None, config, slots=3)
    assert len({one.evaluations for one in together}) > 1
    for i in (0, 4, 7):
        one = alone(generator, i, condition, targets, config, 3)
        assert torch.equal(one.parameters, together[i].parameters)
        assert one.history["total"].tolist() == together[i].history["total"].tolist()


def test_another_number_of_slots_changes_rounding_only(generator, batch):
    # Another batch size goes through other matrix kernels, whose rounding (1e-7) the optimiser then amplifies.
    condition, _, targets = batch
    config = AssignConfig(steps=8)
    eight = assign_encoded(generator, list(range(8)), condition, targets, None, config, slots=8)
    three = assign_encoded(generator, list(range(8)), condition, targets, None, config, slots=3)
    for a, b in zip(eight, three, strict=True):
        torch.testing.assert_close(a.parameters, b.parameters, rtol=0, atol=2e-2)
        assert a.best("total") == pytest.approx(b.best("total"), rel=1e-3)


def test_an_image_leaves_when_its_loss_has_stopped_falling(generator, batch):
    condition, _, targets = batch
    patience, tolerance = 3, 0.01
    config = AssignConfig(steps=40, patience=patience, stop_tolerance=tolerance)
    free = assign_encoded(
        generator, list(range(8)), condition, targets, None, config.model_copy(update={"patience": 0})
    )
    found = assign_encoded(generator, list(range(8)), condition, targets, None, config)
    for one, whole in zip(found, free, strict=True):
        assert whole.evaluations == 40
        best = np.minimum.accumulate(whole.history["total"])
        stalls = [k for k in range(patience, 40) if best[k - patience] - best[k] <= tolerance * best[k]]
        assert one.evaluations == (stalls[0] + 1 if stalls else 40) < 40
        assert one.history["total"].tolist() == whole.history["total"][: one.evaluations].tolist()


def test_a_loss_that_is_not_finite_takes_its_image_out_and_leaves_the_others(generator, batch):
    condition, _, targets = batch
    config = AssignConfig(steps=4)
    sound = assign_encoded(generator, list(range(8)), condition, targets, None, config, slots=4)
    broken = targets.clone()
    broken[3] = float("nan")
    found = assign_encoded(generator, list(range(8)), condition, broken, None, config, slots=4)
    assert [one.failed for one in found] == [i == 3 for i in range(8)]
    assert found[3].evaluations == 1
    assert "at evaluation 1 (total nan, latent nan" in found[3].failure
    for i in (0, 1, 2, 4, 5, 6, 7):
        assert torch.equal(found[i].parameters, sound[i].parameters)


def test_a_warm_start_begins_where_the_other_search_ended(generator, batch):
    condition, _, targets = batch
    first = assign_encoded(generator, list(range(8)), condition, targets, None, AssignConfig(steps=8))
    starts = [one.parameters if i % 2 else None for i, one in enumerate(first)]
    again = assign_encoded(generator, list(range(8)), condition, targets, None, AssignConfig(steps=4), starts=starts)
    for i, (a, b) in enumerate(zip(first, again, strict=True)):
        assert b.initial_loss == pytest.approx(a.best("total") if i % 2 else a.initial_loss, rel=1e-5)
        assert b.best("total") <= b.initial_loss


@pytest.mark.parametrize("settings", [{"regions": 2}, {"transform": "free"}])
def test_more_freedom_comes_closer(generator, batch, settings):
    condition, _, targets = batch
    one = assign_encoded(generator, list(range(8)), condition, targets, None, AssignConfig(steps=20, patience=0))
    config = AssignConfig(steps=20, patience=0, **settings)
    more = assign_encoded(generator, list(range(8)), condition, targets, None, config)
    latent = [np.mean([found.best("latent") for found in search]) for search in (one, more)]
    assert latent[1] < latent[0]


def test_the_prior_keeps_free_noise_gaussian(generator, batch):
    condition, _, targets = batch
    base = generator.base_noise(list(range(8)))
    power = {}
    for weight in (0.0, 0.5):
        config = AssignConfig(transform="free", steps=25, patience=0, prior_weight=weight)
        found = assign_encoded(generator, list(range(8)), condition, targets, None, config)
        noise = noise_space(config, generator.latent_shape).noise(base, torch.stack([one.parameters for one in found]))
        power[weight] = float(noise.square().mean())
        assert all((one.best("prior") > 0) == (weight > 0) for one in found)
    assert abs(power[0.5] - 1) < 0.25 < power[0.0] - 1


class Fragile:
    """An engine's generator on a device that holds `most` images."""

    def __init__(self, generator, most):
        self.generator, self.most = generator, most

    def __getattr__(self, name):
        return getattr(self.generator, name)

    def denoise(self, noise, condition):
        if len(noise) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.generator.denoise(noise, condition)


def requests(generator, condition, targets, config):
    inputs = Reconstruction(generator, config).inputs(condition, targets, None)
    return [Request(i, i, {name: tensor[i] for name, tensor in inputs.items()}) for i in range(len(targets))]


def test_out_of_memory_halves_the_slots_as_often_as_it_takes_and_says_so(generator, batch):
    condition, _, targets = batch
    config, heard = AssignConfig(steps=4), []
    engine = Engine(Fragile(generator, 3), config, 6, on_event=heard.append)
    found = sorted(engine.run(requests(generator, condition, targets, config)), key=lambda one: one.key)
    assert engine.slots == 3
    assert len(heard) == 1
    assert "continuing with 3 images" in heard[0]
    expected = assign_encoded(generator, list(range(8)), condition, targets, None, config, slots=3)
    assert [one.key for one in found] == list(range(8))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.parameters, b.parameters)
    smaller = Engine(Fragile(generator, 1), config, 6)
    assert len(list(smaller.run(requests(generator, condition, targets, config)))) == 8
    assert smaller.slots == 1
    with pytest.raises(torch.OutOfMemoryError):
        list(Engine(Fragile(generator, 0), config, 6).run(requests(generator, condition, targets, config)))


def test_a_source_that_runs_out_of_memory_is_not_taken_for_its_end(generator, batch):
    condition, _, targets = batch
    config = AssignConfig(steps=2)

    def feed():
        yield from requests(generator, condition, targets, config)[:3]
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RunFailed, match="out of memory while images were encoded, use fewer slots"):
        list(Engine(generator, config, 2).run(feed()))


def test_looking_at_a_step_one_step_later_changes_no_result(generator, batch):
    condition, _, targets = batch

    class Later(Engine):
        lag = 1  # as on a GPU, whose host does not wait for the step it has just asked for

    targets = targets.clone()
    targets[5] = float("inf")
    config = AssignConfig(steps=9, patience=2, stop_tolerance=0.02)
    work = requests(generator, condition, targets, config)
    at_once, later = (sorted(kind(generator, config, 3).run(work), key=lambda one: one.key) for kind in (Engine, Later))
    assert [one.failed for one in later] == [i == 5 for i in range(8)]
    for a, b in zip(at_once, later, strict=True):
        assert torch.equal(a.parameters, b.parameters)
        assert (a.evaluations, a.best_step, a.failure) == (b.evaluations, b.best_step, b.failure)


def test_images_are_read_only_when_a_slot_is_free(generator, batch):
    condition, _, targets = batch
    config, taken = AssignConfig(steps=2), []

    def feed():
        for request in requests(generator, condition, targets, config):
            taken.append(request.key)
            yield request

    running = Engine(generator, config, 2).run(feed())
    next(running)
    assert len(taken) <= 5
    assert len(list(running)) == 7


def test_a_patch_size_or_a_grid_that_does_not_divide_is_refused(generator, batch):
    condition, _, targets = batch
    with pytest.raises(UserError, match="patch_size 3"):
        assign_encoded(generator, list(range(8)), condition, targets, None, AssignConfig(patch_size=3))
    with pytest.raises(UserError, match="regions 3 does not divide the 4×4 patches"):
        assign_encoded(generator, list(range(8)), condition, targets, None, AssignConfig(regions=3))
    with pytest.raises(UserError, match="transform free has none"):
        noise_space(AssignConfig(transform="free", regions=2), generator.latent_shape)
