"""What one worker process asks of Ray."""

from pydantic import BaseModel, ConfigDict

from ortho_core.errors import UserError
from ortho_core.marks import conduct


class WorkerResources(BaseModel):
    """What one worker process asks of Ray."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpus_per_worker: float = conduct(1.0, gt=0, description="CPUs (and torch threads) of one worker; may be a fraction")
    gpus_per_worker: float | None = conduct(
        None, ge=0, description="GPUs of one worker, 0.5 shares one between two; none: 1 where the cluster has any"
    )

    autoscaling: bool = conduct(
        False,
        description="the cluster adds nodes on demand: wait for room instead of refusing (give gpus_per_worker too)",
    )

    def gpus(self) -> float:
        """GPUs per worker on the connected cluster."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        import ray

        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def own_gpus(self) -> float:
        """GPUs of a command that works by itself: one, where there is one and none was ruled out."""
        import torch

        return float(self.gpus_per_worker != 0 and torch.cuda.is_available())

    def fitting(self, wanted: int, labels: dict[str, str] | None = None) -> int:
        """How many of `wanted` workers the cluster has room for, on nodes with these labels.

        A plan that does not fit waits forever in Ray, so this is asked before any work starts; all of them, where the
        cluster grows. Raises UserError if it cannot hold one.
        """
        import ray

        if self.autoscaling:
            return wanted
        gpus = self.gpus()
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = [node["Resources"] for node in alive if (labels or {}).items() <= node.get("Labels", {}).items()]
        if not nodes:
            known = sorted(
                {f"{k}={v}" for node in alive for k, v in node.get("Labels", {}).items() if "node-id" not in k}
            )
            raise UserError(
                f"--node-labels: no node has {labels}; the cluster's labels are {', '.join(known) or 'none'}"
            )
        room = sum(self._room(node.get("CPU", 0), node.get("GPU", 0), gpus) for node in nodes)
        if room < 1:
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
            raise UserError(
                f"a worker needs {self.cpus_per_worker:g} CPUs and {gpus:g} GPUs on one node; the cluster's largest has "
                f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs "
                "(lower cpus_per_worker or gpus_per_worker, or say --autoscaling if the cluster adds nodes on demand)"
            )
        return min(wanted, room)

    def spare_cpu(self, workers: int) -> float:
        """1 where the cluster has a CPU more for each of so many workers, else 0: what asks for 1 would wait for ever."""
        import ray

        room = ray.cluster_resources().get("CPU", 0) - workers * self.cpus_per_worker
        return float(self.autoscaling or room >= workers)

    def _room(self, cpus: float, gpus: float, gpus_each: float) -> int:
        """How many workers one node holds; a share of a GPU never spans two."""
        room = int(cpus / self.cpus_per_worker + 1e-9)
        if gpus_each >= 1:
            room = min(room, int(gpus / gpus_each))
        elif gpus_each:
            room = min(room, int(gpus) * int(1 / gpus_each + 1e-9))
        return room
