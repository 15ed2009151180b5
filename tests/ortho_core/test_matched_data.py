import pytest
import torch

from ortho_core.assignments import Assignments
from ortho_core.errors import UserError
from ortho_core.matched_data import MatchedData, Order
from ortho_core.pairs import PairSet
from ortho_core.prompts import PromptCache


def data(assigned, generator, **options):
    pairs, out = assigned
    settings = {"pairs": PairSet(pairs), "noise": "matched", "seed": 3, "needs_images": False, **options}
    return MatchedData(Assignments(out), generator, PromptCache(generator), **settings)


def epoch(source, order, number=0, rank=0, world=1):
    return list(source.batches(order, number, rank, world))


def test_every_epoch_is_a_permutation_without_the_incomplete_batch():
    order = Order(rows=23, batch_size=5, seed=1)
    first, second = order.epoch(0), order.epoch(1)
    assert [len(b) for b in first] == [5, 5, 5, 5]
    assert len({i for b in first for i in b}) == 20
    assert first != second
    assert first == Order(rows=23, batch_size=5, seed=1).epoch(0)


def test_workers_share_the_global_batches(assigned, generator):
    order = Order(rows=24, batch_size=6, seed=0)
    whole = epoch(data(assigned, generator), order)
    shares = [epoch(data(assigned, generator), order, rank=r, world=2) for r in range(2)]
    for k, batch in enumerate(whole):
        for name in ("noise", "target_latents", "preserve_noise"):
            together = torch.cat([getattr(shares[r][k], name) for r in range(2)])
            one = getattr(batch, name)
            assert torch.equal(together, one[[0, 2, 4, 1, 3, 5]])


def test_matched_and_random_differ_in_the_noise_alone(assigned, generator):
    order = Order(rows=24, batch_size=8, seed=0)
    matched = epoch(data(assigned, generator), order)[0]
    random = epoch(data(assigned, generator, noise="random"), order)[0]
    assert torch.equal(matched.target_latents, random.target_latents)
    assert torch.equal(matched.preserve_noise, random.preserve_noise)
    assert not torch.isclose(matched.noise, random.noise, atol=1e-3).flatten(1).all(1).any()
    again = epoch(data(assigned, generator), order, number=1)
    assert not torch.equal(again[0].preserve_noise, matched.preserve_noise)


def test_matched_noise_is_the_assigned_one_and_lies_closer(assigned, generator):
    order = Order(rows=24, batch_size=24, seed=0)
    errors = {}
    for noise in ("matched", "random"):
        batch = epoch(data(assigned, generator, noise=noise), order)[0]
        with torch.no_grad():
            latents = generator.denoise(batch.noise, batch.condition)
        errors[noise] = (latents - batch.target_latents).square().mean()
    losses = [row["loss"] for row in Assignments(assigned[1]).rows(range(24), ["loss"])]
    assert float(errors["matched"]) == pytest.approx(sum(losses) / 24, rel=1e-3)
    assert errors["matched"] < errors["random"]


def test_images_are_read_when_a_pixel_term_needs_them(assigned, generator):
    order = Order(rows=24, batch_size=8, seed=0)
    batch = epoch(data(assigned, generator, needs_images=True), order)[0]
    with torch.no_grad():
        torch.testing.assert_close(generator.encode_images(batch.images), batch.target_latents, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="give --pairs"):
        epoch(data(assigned, generator, needs_images=True, pairs=None), order)
