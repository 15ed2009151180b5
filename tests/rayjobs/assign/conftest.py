"""An export that several modules look at; nothing in it may be changed."""

from pathlib import Path

import pytest

from tests.rayjobs.assign.reference import export


@pytest.fixture(scope="session")
def exported(assigned, tiny_turbo, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    assert export(assigned, tiny_turbo, out) == 0
    return out
