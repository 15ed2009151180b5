"""`ortho verify-noise`: rotated noise is as Gaussian as what it was made of."""

import json

import pytest

from rayjobs.cli import main


def test_verify_noise_passes_and_writes_its_statistics(tmp_path, capsys):
    assert (
        main(["verify-noise", "--size", "16", "--num-samples", "32", "--patch-size", "4", "--out", str(tmp_path)]) == 0
    )
    assert capsys.readouterr().err.count(": Gaussian") == 4
    content = json.loads((tmp_path / "verify_noise.json").read_text())
    assert content["rotated"]["dimension"] == 64
    assert content["rotated"]["patch_norm"]["ks"] == pytest.approx(content["base"]["patch_norm"]["ks"], abs=1e-6)
