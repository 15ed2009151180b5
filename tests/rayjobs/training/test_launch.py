"""Where the training workers run, on a real cluster of two nodes."""

import pytest
import ray
from ray.cluster_utils import Cluster

from ortho_core.errors import UserError
from ortho_core.storage.lease import held
from rayjobs.training.config import TrainingSettings
from rayjobs.training.launch import run_workers
from rayjobs.verb.console import say
from tests.conftest import connect_ray


@pytest.fixture(scope="module", autouse=True)
def far_node(no_ray):
    """The id of the smaller of two nodes, the only one with a label; both have room for all workers."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    far = cluster.add_node(num_cpus=2, labels={"zone": "far"})
    connect_ray(address=cluster.address)
    cluster.wait_for_nodes()
    yield far.node_id
    ray.shutdown()
    cluster.shutdown()


def trained_on(out, **options):
    """The nodes of the workers."""

    def worker(config):
        import ray.train
        from ray.train.collective import barrier

        node = ray.get_runtime_context().get_node_id()
        (config["seen"] / f"{ray.train.get_context().get_world_rank()}").write_text(node)
        barrier()
        return {}

    seen = out / "seen"
    seen.mkdir(parents=True)
    settings = TrainingSettings(**{"num_workers": 2, "cpus_per_worker": 0.5, **options})
    with held(out, "train", say) as lease:
        run_workers(settings, out, worker, {"seen": seen}, "train", 1, lease)
    return [file.read_text() for file in sorted(seen.iterdir())]


@pytest.mark.slow
def test_workers_train_on_nodes_with_the_labels_that_they_need(far_node, tmp_path):
    assert trained_on(tmp_path / "out", node_labels={"zone": "far"}) == [far_node, far_node]
    (home,) = {node["NodeID"] for node in ray.nodes()} - {far_node}
    near = {"ray.io/node-id": home}
    assert trained_on(tmp_path / "near", node_labels=near) == [home, home]


def test_labels_that_no_node_has_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"--node-labels: no node has \{'zone': 'moon'\}; the cluster's labels are zone=far"
    ):
        trained_on(tmp_path / "out", node_labels={"zone": "moon"})
    with pytest.raises(UserError, match=r"--num-workers: 2 is more than the cluster has room for"):
        trained_on(tmp_path / "wide", node_labels={"zone": "far"}, cpus_per_worker=1.5)
