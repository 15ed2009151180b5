"""Where a command computes, and what one worker process asks of Ray."""

from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from ortho_core.errors import UserError
from ortho_core.marks import conduct


def labels(given: object) -> object:
    """`name=value,name=value` as a mapping."""
    if not isinstance(given, str):
        return given
    pairs = [item.partition("=") for item in given.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise ValueError("labels as NAME=VALUE,NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


class DeviceSettings(BaseModel):
    """Where a command computes."""

    device: str = conduct(
        "auto",
        description="auto (cuda where there is one, else cpu), cpu, cuda (NVIDIA's, or AMD's with ROCm), mps (Apple's); one of "
        "several, cuda:1, where no workers are started: Ray gives those their GPUs",
    )

    @property
    def device_kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]


class WorkerResources(DeviceSettings):
    """What one worker process asks of Ray."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpus_per_worker: float = conduct(1.0, gt=0, description="CPUs (and torch threads) of one worker; may be a fraction")
    gpus_per_worker: float | None = conduct(
        None, ge=0, description="GPUs of one worker, 0.5 shares one between two; none: 1 where the cluster has any"
    )
    node_labels: Annotated[dict[str, str] | None, BeforeValidator(labels)] = conduct(
        None, description="run workers only on nodes with these labels, e.g. ray.io/accelerator-type=H100"
    )
    autoscaling: bool = conduct(
        False,
        description="the cluster adds nodes on demand: wait for room instead of refusing (give gpus_per_worker too)",
    )

    @property
    def most_workers(self) -> int:
        """Workers that Ray starts at most; 0: the command works by itself."""
        return 1

    @model_validator(mode="after")
    def _device_of_workers(self) -> Self:
        """Whether Ray can give workers what is asked for."""
        if self.most_workers and self.device != self.device_kind:
            raise ValueError(
                f"--device {self.device}: Ray decides which GPU a worker gets; accepted: --device {self.device_kind}, or no "
                "workers (0)"
            )
        if self.device_kind not in ("auto", "cuda") and self.gpus_per_worker:
            raise ValueError(f"--device {self.device} takes no GPU of Ray's: leave --gpus-per-worker out")
        if self.device_kind == "cuda" and self.gpus_per_worker == 0:
            raise ValueError("--device cuda and --gpus-per-worker 0 contradict each other: leave one out")
        return self

    def gpus(self) -> float:
        """GPUs per worker on the connected cluster; Ray knows of none but those that PyTorch calls cuda."""
        if self.device_kind not in ("auto", "cuda"):
            return 0.0
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        if self.device_kind == "cuda":
            return 1.0
        import ray

        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def worker_device(self) -> str:
        """Where a worker that Ray starts computes. Raises UserError for a device that is not there."""
        from ortho_core.device import pick_device

        if self.device in ("auto", "cuda"):
            return "cuda" if self.gpus() else "cpu"
        return pick_device(self.device)

    def own_device(self) -> str:
        """Where a command computes that starts no workers. Raises UserError for a device that is not there."""
        from ortho_core.device import pick_device

        return pick_device("cpu" if self.device == "auto" and self.gpus_per_worker == 0 else self.device)

    def fitting(self, wanted: int) -> int:
        """How many of `wanted` workers the cluster has room for, on nodes with the labels that they need.

        A plan that does not fit waits forever in Ray, so this is asked before any work starts; all of them, where the
        cluster grows. Raises UserError if it cannot hold one.
        """
        import ray

        if self.autoscaling:
            return wanted
        gpus = self.gpus()
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = [
            node["Resources"] for node in alive if (self.node_labels or {}).items() <= node.get("Labels", {}).items()
        ]
        if not nodes:
            known = sorted(
                {f"{k}={v}" for node in alive for k, v in node.get("Labels", {}).items() if "node-id" not in k}
            )
            raise UserError(
                f"--node-labels: no node has {self.node_labels}; the cluster's labels are {', '.join(known) or 'none'}"
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
