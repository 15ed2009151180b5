"""The options that every training job has."""

from ortho_core.marks import conduct
from rayjobs.training.trackers import TrackerSettings
from rayjobs.verb.resources import WorkerResources


class TrainingSettings(TrackerSettings, WorkerResources):
    """How workers train: how many, what they log, which states are kept. Nothing here decides what is learned."""

    num_workers: int = conduct(1, ge=0, description="training processes (0: train in this process, for a debugger)")
    checkpoint_every: int = conduct(
        0, ge=0, description="updates between resumable states (0: at the end of each epoch)"
    )
    keep_states: int = conduct(1, ge=1, description="resumable states that are kept")
    log_every: int = conduct(5, ge=1, description="updates between entries of the log")
    max_restarts: int = conduct(3, ge=0, description="how often dead workers are started again")

    @property
    def world(self) -> int:
        """Processes that train, also where the only one is the driver's."""
        return max(1, self.num_workers)
