"""The training loop on each Ray Train worker: updates in order, a log, means of each epoch, resumable states.

A subclass defines an update and the work that is due after one. Rank 0 writes. Each worker sums the terms of its own rows; the
sums of all workers are added at the end of an epoch and for a state.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from ortho_core.device import pick_device
from ortho_core.errors import RunFailed
from ortho_core.pictures import labelled_rows
from ortho_core.records.plan import fingerprint
from ortho_core.storage.aside import sweep_aside
from ortho_core.storage.lease import LeaseLost, Ticket
from rayjobs.training.config import TrainingSettings
from rayjobs.training.plan import TrainingPlan
from rayjobs.training.run_files import HISTORY, STOPPED, save_state, saved_state, trim_history
from rayjobs.training.trackers import Trackers
from rayjobs.verb.faults import fault_of
from rayjobs.verb.plan import replace_text

#: The input of one update, defined by a subclass.
Batch = TypeVar("Batch")
T = TypeVar("T")


class Report(TypedDict):
    """The report to Ray Train's callbacks with each state."""

    update: int
    epoch: float
    validation: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class Update:
    """The result of one update."""

    #: The loss terms, means over this worker's rows, one number for each of `TrainLoop.terms`. In host memory, since reading
    #: them from the device would make every update wait for the end of the one before.
    terms: Tensor
    #: False where the update was skipped; its terms do not count.
    applied: bool = True
    #: Further figures for the log.
    figures: Mapping[str, float] = field(default_factory=dict)


class TrainLoop(ABC, Generic[Batch]):
    """One worker's part of a run, and its progress."""

    def __init__(
        self,
        job: TrainingSettings,
        out: Path,
        title: str,
        plan: TrainingPlan,
        terms: tuple[str, ...],
        updates_per_epoch: int,
        updates: int,
        rank: int,
        world: int,
        ticket: Ticket | None = None,
    ) -> None:
        """`plan` goes to the trackers, where its fingerprint identifies the run. The first of `terms` is the loss.

        `ticket` belongs to the lease on the folder; rank 0 checks it before it writes.
        """
        self.settings, self.out, self.title, self.plan = job, out, title, plan
        self.terms, self.updates_per_epoch, self.updates = terms, updates_per_epoch, updates
        self.rank, self.world = rank, world
        self.ticket = ticket if rank == 0 else None
        self._still_held()
        #: The device that this worker computes on.
        self.device = device_of(job)
        self._saved = saved_state(out)
        #: Updates done, over all epochs.
        self.update: int = self._saved["update"] if self._saved is not None else 0
        #: One entry per finished epoch: the mean of each term.
        self.epochs: list[dict[str, float]] = []
        #: Seconds of all updates, including earlier starts, without the work that is due after an update.
        self.seconds = 0.0
        #: Sums of the terms over this worker's applied updates in the epoch so far; the last entry is the number of updates.
        self.sums = np.zeros(len(terms) + 1)
        #: Updates and seconds of this start, without its first update, which includes one-time costs.
        self._steady = (0, 0.0)
        self.trackers: Trackers | None = None

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """The inputs of the remaining updates, in order."""

    @abstractmethod
    def one_update(self, batch: Batch) -> Update:
        """Change the weights. `self.update` is the number of updates before this one. Raises RunFailed."""

    @abstractmethod
    def after_update(self, epoch_ends: bool) -> None:
        """Do the work that is due now (pictures, validation, model folders), before the resumable state is saved."""

    @abstractmethod
    def state_dict(self) -> dict[str, object]:
        """The subclass's part of the resumable state. Every worker calls this, rank 0 saves."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; every worker passes the complete state."""

    @abstractmethod
    def finish(self) -> dict[str, object]:
        """Do the last work after all updates; returns the subclass's part of the summary. Only rank 0 calls this."""

    def before_first_update(self) -> None:  # most runs need nothing
        """Do the work that is due after resuming, before the first update of this start."""

    def validated(self) -> dict[str, float] | None:
        """The figures of the validation after this update, for Ray Train's callbacks; None if there was no validation."""
        return None

    def run(self) -> dict[str, object]:
        """Make the remaining updates. Returns the summary on rank 0, else an empty dict. Raises UserError or RunFailed."""
        if self._saved is not None:
            self._resume(self._saved)
            self._saved = None
        with ExitStack() as stack:
            if self.rank == 0:
                sweep_aside(self.out, alone=True)
                trim_history(self.out / HISTORY, self.update)
                run_id = fingerprint([self.plan.run_fingerprint, str(self.out)])
                trackers = Trackers(self.settings, self.out, self.title, self.plan.as_json(), run_id, self.update)
                self.trackers = stack.enter_context(trackers)
            self._train()
        if self.rank:
            return {}
        # JSON has no infinity.
        epochs = [{k: v if math.isfinite(v) else None for k, v in epoch.items()} for epoch in self.epochs]
        warnings = self.trackers.warnings if self.trackers is not None else []
        return {"epochs": epochs, **self.finish(), "tracker_failures": warnings}

    def _train(self) -> None:
        self.before_first_update()
        first, since = True, time.monotonic()
        for batch in self.batches():
            done = self.one_update(batch)
            self._still_held()
            self.update += 1
            if done.applied:
                self.sums += [*done.terms.tolist(), 1.0]
            epoch_ends = self.update % self.updates_per_epoch == 0
            if self.update % self.settings.log_every == 0 or epoch_ends:
                self._log(done)
            seconds = time.monotonic() - since
            self.seconds += seconds
            if not first:
                self._steady = (self._steady[0] + 1, self._steady[1] + seconds)
            if epoch_ends:
                self._end_epoch()
            self.after_update(epoch_ends)
            every = self.settings.checkpoint_every
            # The state is saved last, so that a resumed run does not repeat the work that was due.
            if (self.update % every == 0 if every else epoch_ends) or self.update == self.updates:
                self._checkpoint()
            first, since = False, time.monotonic()

    def _still_held(self) -> None:
        """Raises LeaseLost if another driver has taken over the folder."""
        if self.ticket is not None:
            self.ticket.check()

    @property
    def updates_per_second(self) -> float | None:
        """Speed of this start, without the work between updates; None with fewer than two updates."""
        updates, seconds = self._steady
        return updates / seconds if updates else None

    def averaged(self, terms: Tensor) -> Tensor:
        """The mean of the tensor over the workers; the argument may be overwritten."""
        if self.world > 1:
            terms = terms.to(self.device)
            dist.all_reduce(terms)
            terms = terms / self.world
        return terms

    def all_rows(self, mine: Tensor) -> Tensor:
        """The rows of all workers, in the order of their ranks. Every worker must have the same number of rows."""
        if self.world == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    def from_all(self, mine: T) -> list[T]:
        """The objects of all workers by rank, on every worker."""
        if self.world == 1:
            return [mine]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, mine)
        return gathered

    def write(self, values: Mapping[str, float], group: str) -> None:
        """Write figures to the history and to the trackers."""
        if self.trackers is None:
            return
        with (self.out / HISTORY).open("a") as stream:
            stream.write(json.dumps({"update": self.update, "group": group, **values}) + "\n")
        self.trackers.log(self.update, {f"{group}/{name}": value for name, value in values.items()})

    def write_pictures(self, rows: dict[str, Tensor], file: str, name: str, scale: int = 1) -> None:
        """Labelled rows of uint8 images (B, 3, Y, X) as a PNG under `samples`, and to the trackers as `name`."""
        if self.trackers is None:
            return
        sheet = labelled_rows(rows, scale)
        (self.out / "samples").mkdir(exist_ok=True)
        sheet.save(self.out / "samples" / f"{file}.png")
        self.trackers.image(self.update, name, np.asarray(sheet))

    def _log(self, done: Update) -> None:
        values = dict(zip(self.terms, self.averaged(done.terms).tolist(), strict=True))
        self.write({**values, **done.figures}, "train")

    def _end_epoch(self) -> None:
        sums = np.sum(self.from_all(self.sums), axis=0)
        self.sums = np.zeros(len(self.terms) + 1)
        # If every update was skipped, there is no mean.
        means = sums[:-1] / sums[-1] if sums[-1] else np.full(len(self.terms), np.inf)
        self.epochs.append(dict(zip(self.terms, means.tolist(), strict=True)))

    def _checkpoint(self) -> None:
        """Save the resumable state. Only updates in a saved state count as done.

        Ray Train gets the progress, but no copy of the state: it would write the state twice, first to a temporary folder that
        is not cleaned up if the process is killed.
        """
        sums = np.sum(self.from_all(self.sums), axis=0)
        content = self.state_dict()
        if self.rank == 0:
            content |= {"update": self.update, "epochs": self.epochs, "sums": sums.tolist(), "seconds": self.seconds}
            save_state(self.out, self.update, content, self.settings.keep_states)
        report: Report = {"update": self.update, "epoch": self.update / self.updates_per_epoch}
        if (figures := self.validated()) is not None:
            report["validation"] = figures
        ray.train.report(report)

    def _resume(self, state: dict[str, Any]) -> None:
        """Continue from the last saved state."""
        self.epochs, self.seconds = state["epochs"], state["seconds"]
        if self.rank == 0:
            self.sums = np.array(state["sums"])
        self.load_state_dict(state)


def device_of(settings: TrainingSettings) -> torch.device:
    """The device of a worker: the one from Ray, unless the job names another. Raises UserError."""
    if settings.device == "auto" or (settings.num_workers and settings.device == "cuda"):
        return ray.train.torch.get_device()
    return torch.device(pick_device(settings.device))


def work(settings: TrainingSettings, out: Path, run: Callable[[int, int], dict[str, object]]) -> dict[str, object]:
    """The body of a worker: calls `run` with its rank and the number of workers.

    Returns the numbers of the summary, or `error` if a retry cannot help: after an exception Ray Train would start the workers
    again. With several workers, the others still wait for this one, so it writes the reason into a file and raises.
    """
    stopped = out / STOPPED
    if stopped.is_file():
        return {"error": stopped.read_text()}
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    try:
        return run(context.get_world_rank(), context.get_world_size())
    except Exception as error:
        fault = fault_of(error)
        if fault.unexpected or isinstance(error, LeaseLost):  # the folder belongs to another driver: write nothing
            raise
        reason = fault.remedied(settings)
        if context.get_world_size() == 1:
            return {"error": reason}
        replace_text(stopped, reason)
        raise RunFailed(reason) from error
