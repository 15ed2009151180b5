"""Runs of the M-step job that several modules look at; nothing in them may be changed."""

from pathlib import Path

import pytest

from rayjobs.train.job import run
from tests.conftest import start_ray
from tests.rayjobs.train.training import job


@pytest.fixture(scope="session")
def trained(assigned, tiny_turbo, tmp_path_factory) -> Path:
    """Two epochs, undisturbed, in this process."""
    start_ray()
    out = tmp_path_factory.mktemp("trained") / "out"
    assert run(job(assigned, tiny_turbo, out, tensorboard=True)) == 0
    return out


@pytest.fixture(scope="session")
def adapted(assigned, tiny_turbo, tmp_path_factory) -> Path:
    """The same, of a LoRA adapter."""
    start_ray()
    out = tmp_path_factory.mktemp("adapted") / "out"
    assert run(job(assigned, tiny_turbo, out, lora_rank=2, lr=3e-2)) == 0
    return out
