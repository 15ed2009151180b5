"""The messages between driver and workers: a task, and its receipt. Each is one row of a Ray Data block."""

import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ortho_core.pairs.rows import Failure, Shard
from rayjobs.pool.ledger import Task
from rayjobs.verb.faults import Fault, fault_of


@dataclass(frozen=True)
class Work:
    """A task, and the shard with the place of its rows."""

    task: Task
    shard: Shard

    @property
    def rows(self) -> int:
        """The number of rows that the task searches."""
        return self.shard.rows if self.task.only is None else len(self.task.only)

    def to_row(self) -> dict[str, str]:
        only = None if self.task.only is None else sorted(self.task.only)
        return {"work": json.dumps({"revision": self.task.revision, "only": only, "shard": asdict(self.shard)})}

    @staticmethod
    def of_row(row: Mapping[str, str]) -> "Work":
        content = json.loads(row["work"])
        rest = tuple(Shard(**{**run, "rest": ()}) for run in content["shard"]["rest"])
        shard = Shard(**{**content["shard"], "rest": rest})
        only = None if content["only"] is None else frozenset(content["only"])
        return Work(Task(shard.index, content["revision"], only), shard)


@dataclass(frozen=True)
class Receipt:
    """A worker's report on a task to the driver."""

    shard: int
    assigned: int = 0
    quarantined: int = 0
    #: Sum of the assigned rows' losses.
    loss: float = 0.0
    #: The failures of all rows, if no row was usable; nothing is published then.
    failures: tuple[Failure, ...] = ()
    #: The error that ends the run; "" without one.
    error: str = ""
    #: Message of a quarantined row.
    example: str = ""
    #: Lines to print for the user.
    notes: str = ""
    #: With an error: whether memory ran out; whether that was the machine's memory (`host`) or a GPU's; the traceback, if the
    #: error was unexpected; and the worker's batch size, 0 if it failed while loading.
    memory: bool = False
    host: bool = False
    traceback: str = ""
    slots: int = 0

    @staticmethod
    def of_error(shard: int, error: Exception, notes: str = "", slots: int = 0) -> "Receipt":
        """The receipt for an error that ends the run."""
        fault = fault_of(error)
        return Receipt(
            shard,
            error=fault.said,
            notes=notes,
            memory=fault.memory,
            host=fault.host,
            traceback="".join(traceback.format_exception(error)) if fault.unexpected else "",
            slots=slots,
        )

    @property
    def fault(self) -> Fault | None:
        """The `error` with its details; None without one."""
        return Fault(self.error, self.memory, self.host, bool(self.traceback)) if self.error else None

    def to_row(self) -> dict[str, str]:
        return {"receipt": json.dumps(asdict(self))}

    @staticmethod
    def of_row(row: Mapping[str, str]) -> "Receipt":
        content = json.loads(row["receipt"])
        failures = tuple(Failure(**failure) for failure in content.pop("failures"))
        return Receipt(**content, failures=failures)
