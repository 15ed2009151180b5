"""The options that every training job has."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, field_validator

from ortho_core.marks import conduct
from ortho_core.storage.location import Place
from rayjobs.verb.resources import WorkerResources

#: The address or folder of MLflow.
TrackingUri = Annotated[str, Place(names="databricks|[a-z][a-z+-]+:.*")]


class TrackerSettings(BaseModel):
    """The trackers that a training run reports to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensorboard: bool = conduct(True, description="write TensorBoard event files under OUT/tensorboard")
    mlflow: TrackingUri | None = conduct(
        None,
        description="tracking URI of MLflow: http(s)://HOST:PORT, or a folder that the workers can write to; the experiment is "
        "MLFLOW_EXPERIMENT_NAME or 'ortho'; credentials come from MLflow's environment variables on the node "
        "(needs the extra mlflow; sqlite:/// and other databases need the full mlflow package)",
    )
    wandb: str | None = conduct(
        None,
        description="project of Weights & Biases, or ENTITY/PROJECT; the key comes from WANDB_API_KEY on the node; "
        "WANDB_MODE=offline works (needs the extra wandb)",
    )

    @field_validator("wandb")
    @classmethod
    def _project(cls, project: str | None) -> str | None:
        if project is not None and not re.fullmatch(r"[^/]+(/[^/]+)?", project):
            raise ValueError(f"{project!r} is not a project of Weights & Biases; accepted: PROJECT or ENTITY/PROJECT")
        return project


class TrainingSettings(TrackerSettings, WorkerResources):
    """How workers train: how many, their logs, the states that are kept; none of these options changes the result."""

    num_workers: int = conduct(1, ge=0, description="training processes (0: train in this process, for a debugger)")
    checkpoint_every: int = conduct(
        0, ge=0, description="updates between resumable states (0: at the end of each epoch)"
    )
    keep_states: int = conduct(1, ge=1, description="number of resumable states to keep")
    log_every: int = conduct(5, ge=1, description="updates between entries of the log")
    verify: bool = conduct(
        False,
        description="for a finished run: compare the checksums of all files, not only their sizes and times",
    )
    max_restarts: int = conduct(3, ge=0, description="how often dead workers are started again before the run fails")

    @property
    def most_workers(self) -> int:
        return self.num_workers

    @property
    def world(self) -> int:
        """The number of training processes; 1 if the driver's process trains."""
        return max(1, self.num_workers)
