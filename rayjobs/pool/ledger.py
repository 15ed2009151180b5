"""Which shards are planned and which are done: the exactly-once guarantee, on a local folder or an object store.

A shard of input rows is one task and one part file. The file proves that the task is done: it appears complete under its name
or not at all, the first writer's file stays, and its name contains the run's fingerprint. A resumed run does the planned names
that are not published. Failed rows may be tried again: the rows that then succeed are published as another file of the same
shard, a revision, whose failures replace those of the file before it.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from ortho_core.errors import RunFailed, UserError
from ortho_core.records.parts import (
    PART_FOOTERS_AT_ONCE,
    Footer,
    PartAbout,
    ShardResult,
    encode_part,
    read_footer,
    read_footers,
    read_part,
)
from ortho_core.records.plan import ShardedPlan
from ortho_core.storage.store import Store

AnyShardedPlan = TypeVar("AnyShardedPlan", bound=ShardedPlan, covariant=True)

#: The summary of a finished run, in the same folder.
ASSIGN_SUMMARY = "summary.json"

#: Figures in the footers of part files that are summed over a run.
SUMMED = (
    *("truncated_prompts", "evaluations", "candidate_forwards"),
    *("loss_sum", "losses", "initial_loss_sum", "initial_losses"),
)

#: Shards whose footers are in memory at once when a run is concluded.
SHARDS_AT_ONCE = 1024


@dataclass(frozen=True)
class Task:
    """The open work of one shard: all rows, or the rows `only` that failed in the revisions before `revision`."""

    shard: int
    revision: int = 0
    only: frozenset[int] | None = None


class Survey(NamedTuple):
    """The open tasks, the number of settled rows, and how many of these are quarantined."""

    todo: list[Task]
    rows: int
    quarantined: int


@dataclass(frozen=True)
class Counts:
    """The counts of a whole run: rows = assigned + quarantined."""

    rows: int
    assigned: int
    quarantined: int
    quarantined_by_reason: dict[str, int]
    truncated_prompts: int
    evaluations: int
    candidate_forwards: int
    #: Over the rows that record a loss; None if no row does.
    mean_initial_loss: float | None
    mean_loss: float | None


class Ledger(Generic[AnyShardedPlan]):
    """The shards of one run in one folder."""

    def __init__(self, folder: Store, plan: AnyShardedPlan) -> None:
        self.folder, self.plan = folder, plan

    def name(self, shard: int, revision: int = 0) -> str:
        return self.plan.part_name(shard, revision)

    def commit(self, task: Task, result: ShardResult) -> bool:
        """Publish the result of a task. Returns False, and drops the result, if another worker has published it already.

        Raises RunFailed if the part file cannot be written.
        """
        written = time.time()
        losses, initial_losses = result.losses("loss"), result.losses("initial_loss")
        about = PartAbout(
            shard=task.shard,
            revision=task.revision,
            run_fingerprint=self.plan.run_fingerprint,
            loaded_fingerprint=result.loaded_fingerprint,
            written=written,
            truncated_prompts=result.truncated_prompts,
            evaluations=result.evaluations,
            candidate_forwards=result.candidate_forwards,
            loss_sum=sum(losses),
            losses=len(losses),
            initial_loss_sum=sum(initial_losses),
            initial_losses=len(initial_losses),
            failures=tuple(result.failures),
            diversity=result.diversity,
            sizes=result.sizes,
        )
        content = encode_part(result.rows, about, self.plan.part_schema)
        name = self.name(task.shard, task.revision)
        try:
            return self.folder.create(name, content, written)
        except OSError as error:
            raise RunFailed(f"cannot write {self.folder.location}/{name}: {error.strerror or error}") from error

    def committed(self, task: Task) -> Footer | None:
        """The footer of a task's part file; None if the file does not exist."""
        name = self.name(task.shard, task.revision)
        return read_footer(self.folder, name) if self.folder.exists(name) else None

    def survey(self, retry_failures: bool = False, verify: bool = False) -> Survey:
        """What is left to do, and what is settled.

        A damaged part is removed together with its later revisions, and is made again. With `retry_failures` the quarantined
        rows are tried again too. A file that is unchanged since it was written is not read again, unless `verify` is set.
        """
        shards = self.plan.parts_by_shard(self.folder.names())
        with ThreadPoolExecutor(PART_FOOTERS_AT_ONCE) as pool:
            sound = pool.map(lambda item: self._sound(item[0], item[1], verify), enumerate(shards))
            todo, rows, quarantined = [], 0, 0
            for shard, (names, footers) in enumerate(zip(shards, sound, strict=True)):
                if not footers:
                    todo.append(Task(shard))
                    continue
                failed = frozenset(failure.row for failure in footers[-1].about.failures)
                again = bool(failed) and (retry_failures or len(footers) < len(names))
                if again:
                    todo.append(Task(shard, len(footers), failed))
                rows += sum(footer.rows for footer in footers) + (0 if again else len(failed))
                quarantined += 0 if again else len(failed)
        return Survey(todo, rows, quarantined)

    def _sound(self, shard: int, names: list[str], verify: bool) -> list[Footer]:
        """The footers of a shard's parts up to the first damaged one, which is removed together with those after it."""
        footers: list[Footer] = []
        for name in names:
            try:
                footer = read_footer(self.folder, name)
                if footer.about.shard != shard:
                    raise UserError(f"{name} holds shard {footer.about.shard}")
                if verify or self.folder.touched(name, footer.about.written):
                    read_part(self.folder, name)
                footers.append(footer)
            except UserError:
                break
        for name in reversed(names[len(footers) :]):
            self.folder.remove(name)
        return footers

    def parts(self) -> list[list[str]]:
        """The part files of each shard. Raises RunFailed if a shard is not committed."""
        shards = self.plan.parts_by_shard(self.folder.names())
        missing = [shard for shard, names in enumerate(shards) if not names]
        if missing:
            raise RunFailed(
                f"part {self.name(missing[0])} is missing from {self.folder.location}; run the same command again"
            )
        return shards

    def finish(self) -> Counts:
        """Write `failures.jsonl` from the parts, and return the counts. Raises RunFailed if a shard is not committed."""
        shards = self.parts()
        total = dict.fromkeys(("rows", *SUMMED), 0.0)
        reasons: Counter[str] = Counter()
        with tempfile.TemporaryFile() as listing:
            for footers in self._footers(shards):
                for footer in footers:
                    total["rows"] += footer.rows
                    for name in SUMMED:
                        total[name] += getattr(footer.about, name)
                for failure in footers[-1].about.failures:
                    reasons[failure.reason] += 1
                    listing.write(json.dumps(vars(failure)).encode() + b"\n")
            self.folder.replace_from("failures.jsonl", listing)
        self.folder.sweep()
        assigned, quarantined = int(total["rows"]), sum(reasons.values())
        if assigned + quarantined != self.plan.rows:
            raise RuntimeError(f"{assigned} assigned + {quarantined} quarantined is not {self.plan.rows} rows")
        return Counts(
            rows=self.plan.rows,
            assigned=assigned,
            quarantined=quarantined,
            quarantined_by_reason=dict(sorted(reasons.items())),
            truncated_prompts=int(total["truncated_prompts"]),
            evaluations=int(total["evaluations"]),
            candidate_forwards=int(total["candidate_forwards"]),
            mean_initial_loss=total["initial_loss_sum"] / total["initial_losses"] if total["initial_losses"] else None,
            mean_loss=total["loss_sum"] / total["losses"] if total["losses"] else None,
        )

    def _footers(self, shards: list[list[str]]) -> Iterator[list[Footer]]:
        """The footers of each shard's parts, with those of SHARDS_AT_ONCE shards in memory at a time."""
        for start in range(0, len(shards), SHARDS_AT_ONCE):
            group = shards[start : start + SHARDS_AT_ONCE]
            footers = iter(read_footers(self.folder, [name for names in group for name in names]))
            for names in group:
                yield [next(footers) for _ in names]
