"""A pipeline of the class that does not ship, for the tests of loading and of folders."""

import pytest

from tests.small_pipelines import save_stable_diffusion


@pytest.fixture(scope="session")
def stable_diffusion(tiny_turbo, tmp_path_factory):
    """A folder of the other pipeline class, one text encoder, with random weights."""
    return save_stable_diffusion(tiny_turbo, tmp_path_factory.mktemp("models") / "tiny-sd", timestep_spacing="trailing")
