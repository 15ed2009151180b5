import pytest

from ortho_core.generators.model_folder import ModelFolder

#: The part by which a plan may differ from the bytes of real tensors.
WITHIN = 0.1


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Counts that no test made before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ortho" / "memory"


@pytest.fixture
def model(tiny_turbo):
    return ModelFolder.open(tiny_turbo)
