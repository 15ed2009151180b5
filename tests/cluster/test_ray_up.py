"""The cluster launcher's files, as Ray itself reads them."""

import copy
from importlib.metadata import version

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_accepts_the_file(cloud):
    config = yaml.safe_load((ROOT / "cluster" / "ray-up" / f"{cloud}.yaml").read_text())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["docker"]["image"].endswith(f":{version('ray')}")
    kinds = prepared["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0
    assert {name: kind["min_workers"] for name, kind in kinds.items() if name != "head"} == {"gpu_spot": 0, "cpu": 0}
    assert "spot" in str(kinds["gpu_spot"]["node_config"]).lower()
    # Ray's defaults would install another Ray; nothing of them may be left.
    assert not [command for name in config if name.endswith("setup_commands") for command in prepared[name]]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = prepared[name][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert "0.0.0.0" not in start
    assert "--num-cpus=0" in prepared["head_start_ray_commands"][-1]
