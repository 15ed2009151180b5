"""The device of a command, and the resources that one worker process needs from Ray."""

from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from ortho_core.errors import UserError
from ortho_core.marks import conduct


def labels(value: object) -> object:
    """`name=value,name=value` as a mapping. Raises ValueError for other text."""
    if not isinstance(value, str):
        return value
    pairs = [item.partition("=") for item in value.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise ValueError("labels as NAME=VALUE,NAME=VALUE")
    return {name.strip(): text.strip() for name, _, text in pairs}


class DeviceSettings(BaseModel):
    """The device that a command computes on."""

    device: str = conduct(
        "auto",
        description="auto (cuda if there is a GPU, else cpu), cpu, cuda (NVIDIA, or AMD with ROCm), mps (Apple); a number, as in "
        "cuda:1, only if no workers are started, since Ray chooses their GPUs",
    )

    @property
    def device_kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]


class WorkerResources(DeviceSettings):
    """The resources of one worker process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpus_per_worker: float = conduct(1.0, gt=0, description="CPUs (and torch threads) of one worker; may be a fraction")
    gpus_per_worker: float | None = conduct(
        None,
        ge=0,
        description="GPUs of one worker; 0.5: two workers share one (none: 1 if the cluster has a GPU, else 0)",
    )
    node_labels: Annotated[dict[str, str] | None, BeforeValidator(labels)] = conduct(
        None, description="run workers only on nodes with these labels, e.g. ray.io/accelerator-type=H100"
    )
    autoscaling: bool = conduct(
        False,
        description="for a cluster that adds nodes on demand: wait for room instead of ending (give --gpus-per-worker too)",
    )

    @property
    def most_workers(self) -> int:
        """The most workers that Ray starts; 0: the command's own process works."""
        return 1

    @model_validator(mode="after")
    def _device_of_workers(self) -> Self:
        """Raises ValueError for a device that Ray cannot give to workers."""
        if self.most_workers and self.device != self.device_kind:
            raise ValueError(
                f"--device {self.device}: Ray decides which GPU a worker gets; accepted: --device {self.device_kind}, or no "
                "workers (0)"
            )
        if self.device_kind not in ("auto", "cuda") and self.gpus_per_worker:
            raise ValueError(f"--device {self.device} uses no GPU of the Ray cluster: leave --gpus-per-worker out")
        if self.device_kind == "cuda" and self.gpus_per_worker == 0:
            raise ValueError("--device cuda and --gpus-per-worker 0 contradict each other: leave one out")
        return self

    def gpus(self) -> float:
        """GPUs per worker on the connected cluster. Ray counts only GPUs that PyTorch calls cuda."""
        if self.device_kind not in ("auto", "cuda"):
            return 0.0
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        if self.device_kind == "cuda":
            return 1.0
        import ray

        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def worker_device(self) -> str:
        """The device of a worker that Ray starts. Raises UserError for a device that does not exist."""
        from ortho_core.device import pick_device

        if self.device in ("auto", "cuda"):
            return "cuda" if self.gpus() else "cpu"
        return pick_device(self.device)

    def own_device(self) -> str:
        """The device of a command that starts no workers. Raises UserError for a device that does not exist."""
        from ortho_core.device import pick_device

        return pick_device("cpu" if self.device == "auto" and self.gpus_per_worker == 0 else self.device)

    def fitting(self, wanted: int) -> int:
        """How many of `wanted` workers the cluster has room for, on nodes with their labels; all of them with `autoscaling`.

        Ray would wait without end for room that the cluster does not have, so this is checked before any work starts. Raises
        UserError if there is no room for one worker.
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
                "(lower --cpus-per-worker or --gpus-per-worker, or add --autoscaling if the cluster adds nodes on demand)"
            )
        return min(wanted, room)

    def spare_cpu(self, workers: int) -> float:
        """1 if the cluster has one more CPU for each of `workers` workers, else 0: a process that needs 1 would never start."""
        import ray

        room = ray.cluster_resources().get("CPU", 0) - workers * self.cpus_per_worker
        return float(self.autoscaling or room >= workers)

    def _room(self, cpus: float, gpus: float, gpus_each: float) -> int:
        """How many workers fit on one node; a worker with a share of a GPU uses one GPU only."""
        room = int(cpus / self.cpus_per_worker + 1e-9)
        if gpus_each >= 1:
            room = min(room, int(gpus / gpus_each))
        elif gpus_each:
            room = min(room, int(gpus) * int(1 / gpus_each + 1e-9))
        return room
