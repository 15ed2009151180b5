import numpy as np
import torch

from ortho_core.mstep.kept_noise import LatestNoise, refreshed
from ortho_core.noise.seeded import seeded_normal


def test_refreshed_noise_has_the_variance_of_noise_and_the_part_that_is_asked_for():
    kept, fresh = (seeded_normal([k], (64, 64, 64)).numpy() for k in (1, 2))
    mixed = refreshed(kept, fresh, 0.19)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, 0.9 * kept + np.sqrt(0.19) * fresh, atol=1e-6)
    assert abs(mixed.var() - 1) < 0.01
    np.testing.assert_array_equal(refreshed(kept, fresh, 1.0), fresh)
    np.testing.assert_array_equal(refreshed(kept, fresh, 0.0), kept)


def test_what_was_found_last_is_recalled_and_the_rest_is_as_given(tmp_path, monkeypatch):
    shape = (4, 8, 8)
    latest, maps = LatestNoise(10, shape), seeded_normal([1, 2, 3], shape)
    latest.remember([7, 2, 9], maps.half())
    other = seeded_normal([4, 5], shape).numpy()
    recalled = latest.recall([2, 3], other)
    assert recalled.dtype == np.float32
    np.testing.assert_array_equal(recalled[0], maps[1].half().float())
    np.testing.assert_array_equal(recalled[1], other[1])
    latest.remember([2], maps[:1].half())
    again = LatestNoise(10, shape)
    torch.save(latest.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_array_equal(again.recall([2, 7], other), np.stack([maps[0].half(), maps[0].half()]))


def test_its_file_lies_in_the_temporary_folder_and_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    latest = LatestNoise(1000, (4, 8, 8))
    latest.remember([999], torch.ones(1, 4, 8, 8).half())
    assert not list(tmp_path.iterdir())
