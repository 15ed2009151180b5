"""The training loop on each Ray Train worker: updates in order, a log, means of each epoch, resumable states.

What one update does, and what is due after one, is a subclass's. Rank 0 writes; the sums of an epoch are of each worker's own
rows until the epoch, or a state, needs those of all.
"""

import json
import math
import tempfile
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
from ortho_core.storage.folders import sweep_partial
from ortho_core.storage.lease import LeaseLost, Ticket
from rayjobs.training.config import TrainingSettings
from rayjobs.training.plan import TrainingPlan
from rayjobs.training.run_files import HISTORY, STATE, STOPPED, save_state, saved_state, trim_history
from rayjobs.training.trackers import Trackers
from rayjobs.verb.faults import fault_of
from rayjobs.verb.plan import replace_text

#: What a subclass takes for one update.
Batch = TypeVar("Batch")
T = TypeVar("T")


class Report(TypedDict):
    """What Ray Train's callbacks are given with each state."""

    update: int
    epoch: float
    validation: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class Update:
    """What one update did."""

    #: The terms of the loss, means over this worker's rows, one number for each of `TrainLoop.terms`; in host memory, since
    #: reading them of the device would make every update wait for the end of the one before.
    terms: Tensor
    #: False where the update was skipped; its terms do not count.
    applied: bool = True
    #: Further figures for the log.
    figures: Mapping[str, float] = field(default_factory=dict)


class TrainLoop(ABC, Generic[Batch]):
    """One worker's view of a run, and where it stands."""

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
        """`plan` goes to the trackers, where its fingerprint identifies the run. `terms` starts with the loss.

        `ticket` is of the lease on the folder, which rank 0 looks at before it writes.
        """
        self.settings, self.out, self.title, self.plan = job, out, title, plan
        self.terms, self.updates_per_epoch, self.updates = terms, updates_per_epoch, updates
        self.rank, self.world = rank, world
        self.ticket = ticket if rank == 0 else None
        self._still_held()
        #: Where this worker computes.
        self.device = device_of(job)
        self._saved = saved_state(out)
        #: Updates done, over all epochs.
        self.update: int = self._saved["update"] if self._saved is not None else 0
        #: One entry per finished epoch: the mean of each term.
        self.epochs: list[dict[str, float]] = []
        #: Seconds of all updates, of earlier starts too, without what is due after one.
        self.seconds = 0.0
        #: Sums of the terms over the epoch so far and over this worker's updates that were applied, and their number.
        self.sums = np.zeros(len(terms) + 1)
        #: Updates and seconds of this start, without its first update, which pays for what every start pays once.
        self._steady = (0, 0.0)
        self.trackers: Trackers | None = None

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """What the updates that are left train on, in order."""

    @abstractmethod
    def one_update(self, batch: Batch) -> Update:
        """Change the weights; `self.update` is still the number of updates before this one. Raises RunFailed."""

    @abstractmethod
    def after_update(self, epoch_ends: bool) -> None:
        """Whatever is due now, such as pictures, a validation, model folders; before the resumable state is saved."""

    @abstractmethod
    def state_dict(self) -> dict[str, object]:
        """The subclass's part of the resumable state. Every worker calls this, rank 0 saves."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; every worker gives the whole state."""

    @abstractmethod
    def finish(self) -> dict[str, object]:
        """What is left to do after the last update; returns the subclass's part of the summary. Rank 0 alone calls this."""

    def before_first_update(self) -> None:  # most runs need nothing
        """What this start needs after resuming, before its first update."""

    def validated(self) -> dict[str, float] | None:
        """The figures of a validation after this update, for Ray Train's callbacks; none where there was none."""
        return None

    def run(self) -> dict[str, object]:
        """All updates that are left. Returns the summary on rank 0, nothing elsewhere. Raises UserError or RunFailed."""
        if self._saved is not None:
            self._resume(self._saved)
            self._saved = None
        with ExitStack() as stack:
            if self.rank == 0:
                sweep_partial(self.out)
                trim_history(self.out / HISTORY, self.update)
                run_id = fingerprint([self.plan.run_fingerprint, str(self.out)])
                trackers = Trackers(self.settings, self.out, self.title, self.plan.as_json(), run_id, self.update)
                self.trackers = stack.enter_context(trackers)
            self._train()
        if self.rank:
            return {}
        # JSON knows no infinity.
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
            # Last: a run that goes on from here need not do again what was due.
            if (self.update % every == 0 if every else epoch_ends) or self.update == self.updates:
                self._checkpoint()
            first, since = False, time.monotonic()

    def _still_held(self) -> None:
        """Raises LeaseLost where another driver has taken the folder over."""
        if self.ticket is not None:
            self.ticket.check()

    @property
    def updates_per_second(self) -> float | None:
        """Of this start, without what is due between updates; none where it made fewer than two."""
        updates, seconds = self._steady
        return updates / seconds if updates else None

    def averaged(self, terms: Tensor) -> Tensor:
        """Means over the workers of what each has; the tensor given is used up."""
        if self.world > 1:
            terms = terms.to(self.device)
            dist.all_reduce(terms)
            terms = terms / self.world
        return terms

    def all_rows(self, mine: Tensor) -> Tensor:
        """The rows of all workers, which have equally many, in the order of their ranks."""
        if self.world == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    def from_all(self, mine: T) -> list[T]:
        """What each worker gives, on every worker."""
        if self.world == 1:
            return [mine]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, mine)
        return gathered

    def write(self, values: Mapping[str, float], group: str) -> None:
        """To the history and the trackers."""
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
        # Where every update was skipped there is no mean.
        means = sums[:-1] / sums[-1] if sums[-1] else np.full(len(self.terms), np.inf)
        self.epochs.append(dict(zip(self.terms, means.tolist(), strict=True)))

    def _checkpoint(self) -> None:
        """The resumable state, through Ray Train; it is what counts as done."""
        sums = np.sum(self.from_all(self.sums), axis=0)
        content = self.state_dict()
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = None
            if self.rank == 0:
                content |= {
                    "update": self.update,
                    "epochs": self.epochs,
                    "sums": sums.tolist(),
                    "seconds": self.seconds,
                }
                if self.settings.num_workers:
                    save_state(content, Path(scratch) / STATE)
                    checkpoint = ray.train.Checkpoint.from_directory(scratch)
                else:  # Ray Train keeps no checkpoints of a run in its driver's process
                    fresh = self.out / f".{STATE}"
                    save_state(content, fresh)
                    fresh.replace(self.out / STATE)
            report: Report = {"update": self.update, "epoch": self.update / self.updates_per_epoch}
            if (figures := self.validated()) is not None:
                report["validation"] = figures
            ray.train.report(report, checkpoint=checkpoint)

    def _resume(self, state: dict[str, Any]) -> None:
        """Go to where the last checkpoint was."""
        self.epochs, self.seconds = state["epochs"], state["seconds"]
        if self.rank == 0:
            self.sums = np.array(state["sums"])
        self.load_state_dict(state)


def device_of(settings: TrainingSettings) -> torch.device:
    """Where a worker computes: on what Ray gave it, if nothing else was asked for. Raises UserError."""
    if settings.device == "auto" or (settings.num_workers and settings.device == "cuda"):
        return ray.train.torch.get_device()
    return torch.device(pick_device(settings.device))


def work(settings: TrainingSettings, out: Path, run: Callable[[int, int], dict[str, object]]) -> dict[str, object]:
    """What a worker does: `run` with its rank and the number of workers.

    Returns the summary's numbers, or `error` where trying again is of no use: Ray Train would start the workers again after
    an exception. Of several workers the others are still waiting for this one, so it leaves the reason in a file and raises.
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
        if fault.unexpected or isinstance(error, LeaseLost):  # nothing is written into what is another's
            raise
        said = fault.remedied(settings)
        if context.get_world_size() == 1:
            return {"error": said}
        replace_text(stopped, said)
        raise RunFailed(said) from error
