"""One Ray session for a job: the cluster that is there, or a local one for as long as the job runs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field

from ortho_core.errors import UserError

# Both are read when ray is imported. The first is the default that Ray 2.60 announces a change of at every start; the
# second silences lines of its core that a person at a terminal can do nothing about (they stay in the session's logs).
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray


class WorkerResources(BaseModel):
    """What one worker process asks of Ray."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs (and torch threads) of one worker; may be a fraction")
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs of one worker, 0.5 shares one between two; none: 1 where the cluster has any"
    )

    def gpus(self) -> float:
        """GPUs per worker on the connected cluster."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def fitting(self, wanted: int) -> int:
        """How many of `wanted` workers the cluster has room for. Raises UserError if it cannot hold one.

        A plan that does not fit waits forever in Ray, so this is asked before any work starts.
        """
        have, gpus = ray.cluster_resources(), self.gpus()
        room = have.get("CPU", 0) / self.cpus_per_worker
        if gpus:
            room = min(room, have.get("GPU", 0) / gpus)
        if room < 1:
            raise UserError(
                f"a worker needs {self.cpus_per_worker:g} CPUs and {gpus:g} GPUs; the cluster has "
                f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs (lower cpus_per_worker or gpus_per_worker)"
            )
        return min(wanted, int(room))


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS or of `ray start`, else start a local one and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
