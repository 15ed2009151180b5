"""The E-step against the reference method written out, and against itself in other batches."""

import pytest
import torch

from ortho_core.assign import AssignConfig, assign_noise, initial_skew
from ortho_core.errors import UserError
from ortho_core.transform import unpack_skew


def reference_losses(generator, seed, condition, target, image, config):
    """The reference: one image, a raw d × d matrix, torch's own AdamW, everything in plain steps."""
    base = generator.base_noise([seed])
    C, H, W = generator.latent_shape
    p = config.patch_size
    d = C * p * p
    # A = raw - rawᵀ of the engine's start: its upper triangle, nothing below.
    raw = torch.triu(unpack_skew(initial_skew([seed], d), d)[0], diagonal=1).requires_grad_(True)
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


def test_adamw_reproduces_the_reference_whatever_shares_the_batch(generator, batch):
    condition, images, targets = batch
    config = AssignConfig(optimizer="adamw", lr=5e-4, steps=12, pixel_l1_weight=0.5, drift_reg_weight=0.1)
    done = assign_noise(generator, [11, 12, 13], condition[:3], targets[:3], images[:3], config)
    for i, seed in enumerate((11, 12, 13)):
        one = slice(i, i + 1)
        expected = reference_losses(generator, seed, condition[one], targets[one], images[one], config)
        assert done.history[:, i].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_lowest_iterate_is_kept(generator, batch):
    condition, images, targets = batch
    config = AssignConfig(optimizer="adamw", lr=0.3, steps=10)  # far too large a rate: the loss goes up and down
    done = assign_noise(generator, list(range(8)), condition, targets, images, config)
    assert (done.history[-1] > done.history.amin(0)).any()
    assert torch.equal(done.best.total, done.history.amin(0))
    again = AssignConfig(steps=1)
    assert torch.equal(
        done.initial_loss, assign_noise(generator, list(range(8)), condition, targets, None, again).initial_loss
    )


def test_lbfgs_gets_further_than_the_reference_on_the_same_evaluations(generator, batch):
    condition, _, targets = batch
    found = {}
    for name in ("lbfgs", "adamw"):
        config = AssignConfig(optimizer=name, steps=12)
        found[name] = assign_noise(generator, list(range(8)), condition, targets, None, config)
    assert torch.equal(found["lbfgs"].initial_loss, found["adamw"].initial_loss)
    assert found["lbfgs"].best.total.mean() < found["adamw"].best.total.mean()
    assert (found["lbfgs"].best.total < found["lbfgs"].initial_loss).all()


def test_an_image_gets_the_same_result_in_any_batch(generator, batch):
    # A batch of another size goes through other matrix kernels, whose rounding (1e-7) the optimiser then amplifies.
    condition, _, targets = batch
    config = AssignConfig(steps=8)
    together = assign_noise(generator, list(range(8)), condition, targets, None, config)
    order = [5, 2, 7]
    apart = assign_noise(generator, order, condition[order], targets[order], None, config)
    torch.testing.assert_close(apart.skew, together.skew[order], rtol=0, atol=5e-3)
    torch.testing.assert_close(apart.best.total, together.best.total[order], rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_marks_its_image_and_leaves_the_others(generator, batch):
    condition, _, targets = batch
    config = AssignConfig(steps=4)
    sound = assign_noise(generator, list(range(8)), condition, targets, None, config)
    broken = targets.clone()
    broken[3] = float("nan")
    done = assign_noise(generator, list(range(8)), condition, broken, None, config)
    assert done.failed.tolist() == [i == 3 for i in range(8)]
    others = [i for i in range(8) if i != 3]
    torch.testing.assert_close(done.best.total[others], sound.best.total[others])


def test_a_patch_size_that_does_not_divide_is_refused(generator, batch):
    condition, _, targets = batch
    with pytest.raises(UserError, match="patch_size 3"):
        assign_noise(generator, list(range(8)), condition, targets, None, AssignConfig(patch_size=3))
