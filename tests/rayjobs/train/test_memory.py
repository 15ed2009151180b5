"""What a dry run of `train` says of a GPU's memory."""

import pytest

from rayjobs.train.job import describe
from rayjobs.train.memory import Updates
from rayjobs.train.models import TrainModels
from tests.rayjobs.train.training import job, planned


@pytest.mark.slow
def test_it_counts_the_search_of_online_noise_and_says_where_it_counts_what_sharding_divides(
    assigned, tiny_turbo, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"gpu_memory": 8.0, "noise": "online", "num_workers": 2, "mixed_precision": "no"}
    said = describe(job(assigned, tiny_turbo, tmp_path / "out", parallel="fsdp", **options))["memory"]
    assert said["fits"]
    assert 0 < said["planned_while_matching_gib"] <= said["planned_gib"]
    assert "among the 2 workers" in said["parallel"]
    # The same counts, from the cache.
    other = describe(job(assigned, tiny_turbo, tmp_path / "out", **options))["memory"]
    assert other == {name: value for name, value in said.items() if name != "parallel"}


@pytest.mark.slow
def test_an_optimiser_that_reads_its_numbers_is_counted(assigned, tiny_turbo, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = describe(job(assigned, tiny_turbo, tmp_path / "out", gpu_memory=8.0, optimizer="adafactor"))["memory"]
    assert 0 < said["kept_between_updates_gib"] < said["planned_gib"]


def test_activations_are_computed_twice_where_nothing_else_fits(assigned, tiny_turbo, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = job(assigned, tiny_turbo, tmp_path / "out", lora_rank=2, batch_size=24)
    updates = Updates.of(made, TrainModels.open(made), planned(made)[1])
    once, twice = (updates.plan(1 << 40, checkpointing).peak for checkpointing in (False, True))
    assert twice < once
    assert [updates.fitting(usable).gradient_checkpointing for usable in (once, once - 1, twice)] == [False, True, True]
    nothing = updates.fitting(twice - 1)
    assert not nothing.fits
    assert not nothing.gradient_checkpointing  # what does not help is not done
