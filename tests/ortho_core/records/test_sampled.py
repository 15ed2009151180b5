"""A sample of records: all of a small run, the same rows of a large one at every call, and their noise."""

import torch

from ortho_core.records.assignments import Assignments
from ortho_core.records.sampled import noise_of, sampled_records, spread
from tests.rayjobs.same import rows


def test_a_small_run_is_looked_at_as_a_whole_and_in_its_order(assigned):
    found, recorded = Assignments(assigned[1]), rows(assigned[1])
    records = sampled_records(found)
    assert [record.sample_id for record in records] == list(recorded)
    for record in records:
        row = recorded[record.sample_id]
        assert (record.prompt, record.image, record.initial_loss, record.loss, record.evaluations) == tuple(
            row[name] for name in ("prompt", "image", "initial_loss", "loss", "evaluations")
        )
        assert record.fall == 1 - row["loss"] / row["initial_loss"]


def test_a_sample_is_from_all_over_the_run_and_the_same_at_every_call(assigned):
    found = Assignments(assigned[1])
    records = sampled_records(found, rows=6)
    assert records == sampled_records(Assignments(assigned[1]), rows=6)
    # Three shards of eight rows.
    assert [(found.parts.index(record.part), record.row) for record in records] == [
        (part, row) for part in range(3) for row in (0, 4)
    ]
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(0, 4) == []


def test_the_noise_of_a_sample_is_that_of_its_rows(assigned, generator):
    found = Assignments(assigned[1])
    records = sampled_records(found)
    some = [records[i] for i in (17, 3, 3, 20)]
    noise = noise_of(found, some, generator.latent_shape)
    base, matched = torch.stack([one.base for one in noise]), torch.stack([one.matched for one in noise])
    assert torch.equal(base, found.base_noise([17, 3, 3, 20], generator.latent_shape))
    # A batch of other rows rounds differently, in the last bit of a double.
    assert torch.allclose(matched, found.noise([17, 3, 3, 20], generator.latent_shape), atol=1e-6)
