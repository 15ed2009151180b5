"""What driver and workers tell each other: a shard to work on, and what came of it. Each is one row of a Ray Data block."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ortho_core.pairs.rows import Failure, Shard
from rayjobs.pool.ledger import Task
from rayjobs.verb.faults import Fault


@dataclass(frozen=True)
class Work:
    """A task, and where the rows of its shard are."""

    task: Task
    shard: Shard

    @property
    def rows(self) -> int:
        """Rows that are looked at."""
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
    """What the driver hears of a task."""

    shard: int
    assigned: int = 0
    quarantined: int = 0
    #: Sum over the assigned rows.
    loss: float = 0.0
    #: Where no row was usable and nothing is published yet.
    failures: tuple[Failure, ...] = ()
    #: Why the run cannot go on.
    error: str = ""
    #: Message of a quarantined row.
    example: str = ""
    #: What a person should know.
    notes: str = ""
    #: Of an error: whether memory ran out, the machine's or a GPU's; the traceback, where nothing else explains it; and the
    #: worker's images side by side, 0 where it has not come so far.
    memory: bool = False
    host: bool = False
    traceback: str = ""
    slots: int = 0

    @property
    def fault(self) -> Fault | None:
        """What `error` is about."""
        return Fault(self.error, self.memory, self.host, bool(self.traceback)) if self.error else None

    def to_row(self) -> dict[str, str]:
        return {"receipt": json.dumps(asdict(self))}

    @staticmethod
    def of_row(row: Mapping[str, str]) -> "Receipt":
        content = json.loads(row["receipt"])
        failures = tuple(Failure(**failure) for failure in content.pop("failures"))
        return Receipt(**content, failures=failures)
