"""Runs of the M-step job that several modules look at; none of them may be changed."""

from pathlib import Path

import pytest

from rayjobs.train import run
from tests.conftest import start_ray
from tests.rayjobs.training import job


@pytest.fixture(scope="session")
def trained(assigned, tiny_turbo, tmp_path_factory) -> Path:
    """One worker in this process, undisturbed."""
    start_ray()
    out = tmp_path_factory.mktemp("trained") / "out"
    assert run(job(assigned, tiny_turbo, out, tensorboard=True)) == 0
    return out
