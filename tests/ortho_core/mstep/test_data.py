from dataclasses import replace

import numpy as np
import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.generators.base import at_size
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.data import MatchedData, map_at, to_batch
from ortho_core.mstep.loss import sft_loss
from ortho_core.mstep.row_order import Order
from ortho_core.mstep.share import Share
from ortho_core.mstep.size_order import SizeOrder
from ortho_core.mstep.teacher import FrozenTeacher
from ortho_core.mstep.unassigned import UnassignedRows
from ortho_core.mstep.update import MStep
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.assignments import Assignments


def data(assigned, batch_size, **options):
    pairs, out = assigned
    assignments = Assignments(out)
    settings = {"pairs": PairSet(pairs), "noise": "matched", "seed": 3, **options}
    order = Order(assignments.starts, batch_size, 0)
    return MatchedData(assignments, order, (4, 8, 8), (32, 32), **settings)


@pytest.mark.parametrize(
    "options",
    [
        {"preserve_rows": 12},
        {"preserve_rows": 4, "preserve_differences": True},
        {"preserve_rows": 2, "preserve_prompts": ("one", "two")},
    ],
)
def test_workers_share_the_updates(assigned, options):
    whole = data(assigned, 6, **options).share(1, 2)
    shares = [data(assigned, 6, **options).share(1, 2, rank, 2) for rank in range(2)]
    for name in ("noise", "targets", "preserve_noise"):
        np.testing.assert_array_equal(np.concatenate([getattr(s, name) for s in shares]), getattr(whole, name))
    for name in ("row_names", "prompts", "preserve_prompts"):
        assert [x for s in shares for x in getattr(s, name)] == getattr(whole, name)
    assert len(whole.preserve_noise) == len(whole.preserve_prompts) == options["preserve_rows"]


@pytest.mark.parametrize("options", [{}, {"preserve_differences": True}, {"preserve_prompts": ("one", "two", "three")}])
@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_preserve_rows_that_do_not_divide_fill_shares_up_and_count_alike(assigned, options, world, micro_batches):
    P = 4
    whole = data(assigned, 12, preserve_rows=P, **options).share(1, 1)
    np.testing.assert_array_equal(whole.preserve_weights, np.full(P, 1 / P, np.float32))
    source = data(assigned, 12, preserve_rows=P, micro_batches=micro_batches, **options)
    shares = [source.share(1, 1, rank, world) for rank in range(world)]
    assert len({len(s.preserve_noise) for s in shares}) == 1
    assert len(shares[0].preserve_noise) % micro_batches == 0
    counted = [s.preserve_weights > 0 for s in shares]
    noise = np.concatenate([s.preserve_noise[c] for s, c in zip(shares, counted, strict=True)])
    np.testing.assert_array_equal(noise, whole.preserve_noise)
    texts = [t for s, c in zip(shares, counted, strict=True) for t in np.array(s.preserve_prompts)[c]]
    assert texts == whole.preserve_prompts
    parts = world * micro_batches
    of_parts = np.concatenate([s.preserve_weights.reshape(micro_batches, -1).sum(1) for s in shares])
    assert of_parts.mean() == pytest.approx(1)
    assert {round(float(w), 6) for s in shares for w in s.preserve_weights} <= {0.0, round(parts / P, 6)}
    # What fills up has a prompt that is there to be embedded.
    assert all(set(s.preserve_prompts) <= {*s.prompts, *options.get("preserve_prompts", ())} for s in shares)


def test_preserve_prompts_are_the_rows_own_spread_over_them(assigned):
    share = data(assigned, 6, preserve_rows=12).share(0, 0)
    assert share.preserve_prompts == [p for p in share.prompts for _ in range(2)]
    half = data(assigned, 6, preserve_rows=3).share(0, 0)
    assert half.preserve_prompts == share.prompts[::2]
    # Their noise is new in every update and every epoch.
    noises = [data(assigned, 6, preserve_rows=6).share(e, s).preserve_noise for e, s in ((0, 0), (0, 1), (1, 0))]
    assert len(np.unique(np.concatenate(noises).reshape(18, -1)[:, 0])) == 18


@pytest.mark.parametrize("options", [{}, {"preserve_prompts": ("one", "two", "three")}])
def test_where_differences_are_preserved_two_rows_have_a_prompt_and_two_noises(assigned, options):
    source = data(assigned, 6, preserve_rows=6, preserve_differences=True, **options)
    for share in (source.share(0, 0), source.share(0, 1)):
        assert share.preserve_prompts[::2] == share.preserve_prompts[1::2]
        assert len(np.unique(share.preserve_noise.reshape(6, -1)[:, 0])) == 6


def test_preserve_prompts_of_a_file_are_drawn_all_alike(assigned):
    source = data(assigned, 6, preserve_rows=24, preserve_prompts=("one", "two", "three"))
    drawn = [p for step in range(4) for p in source.share(0, step).preserve_prompts]
    counts = [drawn.count(p) for p in ("one", "two", "three")]
    assert sum(counts) == 96
    assert min(counts) > 16


def test_a_share_survives_its_way_through_a_table(assigned):
    share = data(assigned, 6, preserve_rows=6, needs_images=True).share(0, 0)
    back = Share.of_row(share.as_row())
    for name, value in vars(share).items():
        np.testing.assert_array_equal(getattr(back, name), value)
    bare = data(assigned, 6).share(0, 0)
    assert Share.of_row(bare.as_row()).preserve_noise is None


def test_matched_and_random_differ_in_the_noise_alone(assigned):
    matched = data(assigned, 8, preserve_rows=8).share(0, 0)
    random = data(assigned, 8, preserve_rows=8, noise="random").share(0, 0)
    np.testing.assert_array_equal(matched.targets, random.targets)
    np.testing.assert_array_equal(matched.preserve_noise, random.preserve_noise)
    assert not np.isclose(matched.noise, random.noise, atol=1e-3).reshape(8, -1).all(1).any()


def test_noise_to_be_matched_is_fresh_in_every_epoch_and_what_is_kept_is_the_assigned_noise(assigned):
    fresh = [data(assigned, 24, noise="online").share(epoch, 0) for epoch in (0, 1)]
    assert all(share.kept is None for share in fresh)
    by_name = [dict(zip(share.row_names, share.noise, strict=True)) for share in fresh]
    assert len({float(maps[name][0, 0, 0]) for maps in by_name for name in maps}) == 48
    keeps = data(assigned, 8, noise="online", keeps=True).share(1, 2)
    np.testing.assert_array_equal(keeps.kept, data(assigned, 8).share(1, 2).noise)
    np.testing.assert_array_equal(keeps.noise[0], by_name[1][keeps.row_names[0]])


def test_pairs_to_which_nothing_was_assigned_have_images_and_keep_a_noise_of_their_own(assigned):
    pairs = UnassignedRows(PairSet(assigned[0]), (32, 32))
    order = Order(pairs.starts, 8, 0)
    source = MatchedData(pairs, order, (4, 8, 8), (32, 32), "online", 3, preserve_rows=8, keeps=True)
    share, like = source.share(0, 1), data(assigned, 8, preserve_rows=8, needs_images=True, noise="online").share(0, 1)
    assert source.encodes
    assert share.targets is None
    for name in ("rows", "row_names", "prompts", "preserve_prompts", "unusable"):
        assert getattr(share, name) == getattr(like, name)
    for name in ("noise", "images", "preserve_noise"):
        np.testing.assert_array_equal(getattr(share, name), getattr(like, name))
    again = {n: k for step in range(3) for n, k in zip(*kept(source.share(1, step)), strict=True)}
    for name, own in zip(*kept(share), strict=True):
        np.testing.assert_array_equal(again[name], own)


def kept(share):
    return share.row_names, share.kept


def test_matched_noise_is_the_assigned_one_and_lies_closer(assigned, generator):
    errors = {}
    for noise in ("matched", "random"):
        share = data(assigned, 24, noise=noise).share(0, 0)
        batch = to_batch(share, generator, PromptCache(generator), False)
        with torch.no_grad():
            latents = generator.denoise(batch.noise, batch.condition)
        errors[noise] = (latents - batch.target_latents).square().mean()
    losses = [row["loss"] for row in Assignments(assigned[1]).rows(range(24), ["loss"])]
    assert float(errors["matched"]) == pytest.approx(sum(losses) / 24, rel=1e-3)
    assert errors["matched"] < errors["random"]


def test_centred_noise_is_the_assigned_one_less_its_mean(assigned):
    assignments = Assignments(assigned[1])
    every = assignments.noise(range(len(assignments)), (4, 8, 8)).double()
    mean = assignments.mean_noise((4, 8, 8))
    torch.testing.assert_close(mean.double(), every.mean(0), rtol=0, atol=1e-6)
    matched = data(assigned, 8, preserve_rows=8).share(0, 0)
    centred = data(assigned, 8, preserve_rows=8, center=mean.numpy()).share(0, 0)
    np.testing.assert_allclose(matched.noise - centred.noise, np.broadcast_to(mean, (8, 4, 8, 8)), atol=1e-6)
    np.testing.assert_array_equal(matched.preserve_noise, centred.preserve_noise)


def test_the_mean_of_many_rows_is_that_of_rows_from_all_over(assigned):
    assignments = Assignments(assigned[1])
    n = len(assignments)
    expected = assignments.noise([0, n // 3, 2 * n // 3], (4, 8, 8)).double().mean(0)
    torch.testing.assert_close(assignments.mean_noise((4, 8, 8), most=3).double(), expected, rtol=0, atol=1e-6)


def test_images_are_read_when_a_pixel_term_needs_them(assigned, generator):
    share = data(assigned, 8, needs_images=True).share(0, 0)
    assert share.images.dtype == np.uint8
    batch = to_batch(share, generator, PromptCache(generator), True)
    with torch.no_grad():
        torch.testing.assert_close(generator.encode_images(batch.images), batch.target_latents, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="give --pairs"):
        data(assigned, 8, needs_images=True, pairs=None).share(0, 0)


def test_images_are_encoded_where_no_latents_were_stored(assigned, generator):
    share = data(assigned, 8, needs_images=True).share(0, 0)
    without = Share(**{**vars(share), "targets": None})
    batch = to_batch(without, generator, PromptCache(generator), False)
    torch.testing.assert_close(batch.target_latents, torch.from_numpy(share.targets), rtol=1e-4, atol=1e-4)
    assert batch.images is None


def mixed(assigned_mixed, batch_size, **options):
    pairs, out = assigned_mixed
    assignments = Assignments(out)
    framing = assignments.plan.framing((32, 32))
    order = SizeOrder(list(assignments.by_size((32, 32)).values()), batch_size, 0)
    settings = {"pairs": PairSet(pairs), "noise": "matched", "seed": 3, "framing": framing, **options}
    return MatchedData(assignments, order, (4, 8, 8), (32, 32), **settings)


def gradient(tiny_turbo, shares, micro_batches=1, needs_images=False):
    """The gradient of an update of several workers, whose shares are computed one after another, and its terms."""
    generator = load_generator(ModelFolder.open(tiny_turbo))
    teacher = FrozenTeacher.copy_of(generator.trainable)
    with torch.no_grad():
        for parameter in generator.trainable.parameters():
            parameter.mul_(1.02)
    config = MStepConfig(pixel_l1_weight=0.5 * needs_images, gradient_accumulation_steps=micro_batches)
    step = MStep(generator, config, teacher=teacher)
    total, terms = 0.0, torch.zeros(5)
    for share in shares:
        parts = [to_batch(part, generator, PromptCache(generator), needs_images) for part in share.parts]
        sums, _ = step._accumulate(parts[0] if parts[0].weights is None else parts)
        total = total + torch.cat([p.grad.flatten() for p in step.parameters if p.grad is not None]) / len(shares)
        terms += sums.detach() / len(shares)
        step.optimizer.zero_grad(set_to_none=True)
    return total, terms


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 2), (2, 1), (2, 3)])
def test_an_update_of_several_sizes_is_the_mean_over_its_rows(assigned_mixed, tiny_turbo, world, micro_batches):
    """With images of several sizes, whatever the number of workers and micro-batches, and also filled up for a compiler."""
    source = mixed(assigned_mixed, 6, preserve_rows=3, preserve_prompts=("one", "two"))
    kinds = [len(source.share(0, number).parts) for number in range(source.order.updates)]
    number = kinds.index(max(kinds))
    assert max(kinds) > 1
    expected, terms = gradient(tiny_turbo, [source.share(0, number)])
    for pads in (False, True):
        split = replace(source, micro_batches=micro_batches, pads=pads)
        shares = [split.share(0, number, rank, world) for rank in range(world)]
        assert [[p.frames[0][4:] for p in s.parts] for s in shares] == [
            [p.frames[0][4:] for p in shares[0].parts]
        ] * world
        if pads:
            assert {len(p.rows) for s in shares for p in s.parts} == {6 // (world * micro_batches)}
            assert len({len(p.preserve_prompts) for s in shares for p in s.parts}) == 1
        found, also = gradient(tiny_turbo, shares, micro_batches)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(also, terms, rtol=1e-5, atol=1e-6)


def test_weights_of_rows_are_those_of_their_mean(assigned_mixed, tiny_turbo):
    source = mixed(assigned_mixed, 6, needs_images=True)
    kinds = [len(source.share(0, number).parts) for number in range(source.order.updates)]
    share = source.share(0, kinds.index(max(kinds)))
    assert sum(part.weights.sum() for part in share.parts) == pytest.approx(1)
    generator = load_generator(ModelFolder.open(tiny_turbo))
    errors = []
    for part in share.parts:
        batch = to_batch(part, generator, PromptCache(generator), True)
        assert batch.images.shape[2:] == tuple(part.frames[0][4:])
        with torch.no_grad():
            latents = generator.denoise(batch.noise, batch.condition)
        errors += (latents - batch.target_latents).square().flatten(1).mean(1).tolist()
    assert len(errors) == 6
    with torch.no_grad():
        parts = [to_batch(part, generator, PromptCache(generator), True) for part in share.parts]
        found = sum(sft_loss(generator, None, part, MStepConfig(preserve_latent_weight=0))["latent"] for part in parts)
    assert float(found) == pytest.approx(np.mean(errors), rel=1e-5)


def test_rows_of_several_sizes_have_their_noise_image_and_frame(assigned_mixed, generator):
    source, assignments = mixed(assigned_mixed, 6, needs_images=True, preserve_rows=2), Assignments(assigned_mixed[1])
    seen = []
    for number in range(source.order.updates):
        for part in source.share(0, number).parts:
            frames = assignments.frames(part.rows)
            assert [tuple(frame) for frame in part.frames] == frames
            (size,) = {frame.size for frame in frames}
            shape = at_size(generator, size).latent_shape
            np.testing.assert_array_equal(part.noise, assignments.noise(part.rows, shape))
            np.testing.assert_array_equal(part.targets, assignments.targets(part.rows, shape))
            assert part.images.shape[1:3] == size
            assert part.preserve_noise.shape[1:] == shape
            batch = to_batch(part, generator, PromptCache(generator), True)
            told = batch.condition.tensors["time_ids"]
            assert told.tolist() == [list(frame) for frame in frames]
            plain = batch.preserve_condition.tensors["time_ids"]
            assert plain.tolist() == [[*size, 0, 0, *size]] * len(plain)
            with torch.no_grad():
                torch.testing.assert_close(
                    generator.encode_images(batch.images), batch.target_latents, rtol=0, atol=1e-5
                )
            seen += part.rows
    assert len(seen) == len(set(seen)) == 18


def test_shares_of_several_sizes_come_back_from_their_table(assigned_mixed):
    source = mixed(assigned_mixed, 6, needs_images=True, preserve_rows=2)
    for number in range(source.order.updates):
        share = source.share(0, number)
        again = Share.of_row(share.packed())
        assert len(again.parts) == len(share.parts)
        for one, other in zip(again.parts, share.parts, strict=True):
            for name, value in vars(other).items():
                np.testing.assert_equal(getattr(one, name), value)


def test_pairs_without_assignments_are_sorted_once_they_are_decoded(assigned_mixed):
    framing = Assignments(assigned_mixed[1]).plan.framing((32, 32))
    pairs = UnassignedRows(PairSet(assigned_mixed[0]), (32, 32), framing=framing)
    source = MatchedData(
        pairs, Order(pairs.starts, 6, 0), (4, 8, 8), (32, 32), "random", 3, preserve_rows=4, framing=framing
    )
    for world in (1, 2):
        shares = [source.share(0, 1, rank, world) for rank in range(world)]
        parts = [part for share in shares for part in share.parts]
        assert sum(len(part.rows) for part in parts) == 6
        assert sum(part.weights.sum() for part in parts) / world == pytest.approx(1)
        assert sum(part.preserve_weights.sum() for part in parts) / world == pytest.approx(1)
        for part in parts:
            assert len({tuple(frame[4:]) for frame in part.frames}) == 1
            assert part.images.shape[1:3] == tuple(part.frames[0][4:])


def test_the_mean_noise_is_scaled_to_each_size():
    noise = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
    assert map_at(noise, (4, 8, 8)) is noise
    scaled = map_at(noise, (4, 6, 10))
    assert scaled.shape == (4, 6, 10)
    np.testing.assert_allclose(scaled.mean((1, 2)), noise.mean((1, 2)), atol=0.05)


def test_a_compiled_network_gets_one_shape_for_each_size(assigned_mixed):
    """In all updates of an epoch, also those of remainders."""
    source = mixed(assigned_mixed, 6, preserve_rows=3, preserve_prompts=("one", "two"), micro_batches=3, pads=True)
    shapes = set()
    for number in range(source.order.updates):
        for part in source.share(0, number).parts:
            split = 3 if part.weights is None else 1
            shapes.add((*part.noise.shape[2:], len(part.noise) / split, len(part.preserve_noise) / split))
    assert sorted(shapes) == [(6, 10, 2, 1), (8, 8, 2, 1), (10, 6, 2, 1)]
