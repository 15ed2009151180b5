"""Pipelines of the kinds that do not ship, for the tests of loading and of folders."""

import pytest

from tests.small_pipelines import save_stable_diffusion, save_stable_diffusion_xl


@pytest.fixture(scope="session")
def stable_diffusion(tiny_turbo, tmp_path_factory):
    """A folder of the other pipeline class, one text encoder, with random weights."""
    return save_stable_diffusion(tiny_turbo, tmp_path_factory.mktemp("models") / "tiny-sd", timestep_spacing="trailing")


@pytest.fixture(scope="session")
def stable_diffusion_xl(tiny_turbo, tmp_path_factory):
    """A folder with the layout of SDXL's parts, with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sdxl"
    return save_stable_diffusion_xl(tiny_turbo, folder, timestep_spacing="trailing")
