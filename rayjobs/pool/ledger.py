"""What is planned and what is done: the exactly-once guarantee, on a local folder or an object store.

A shard of input rows is one task and one published part file. The file is the receipt: it appears whole under its name or
not at all, the first writer's stays, and the name carries the run's fingerprint. Resuming is the difference between
planned and published names. Rows that failed may be tried again: what then succeeds is published as a further file of the
same shard, a revision, whose failures replace those of the file before it.
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

#: What a finished run says of itself, in the same folder.
ASSIGN_SUMMARY = "summary.json"

#: What is summed over the parts of a run, of what they say of their rows.
SUMMED = (
    *("truncated_prompts", "evaluations", "candidate_forwards"),
    *("loss_sum", "losses", "initial_loss_sum", "initial_losses"),
)

#: Shards whose footers are in memory together when a run is concluded.
SHARDS_AT_ONCE = 1024


@dataclass(frozen=True)
class Task:
    """What is left to do of one shard: all of it, or the rows that failed in the revisions before `revision`."""

    shard: int
    revision: int = 0
    only: frozenset[int] | None = None


class Survey(NamedTuple):
    """What is left to do, and how many rows are settled, those among them that are quarantined."""

    todo: list[Task]
    rows: int
    quarantined: int


@dataclass(frozen=True)
class Counts:
    """A whole run, reconciled: rows = assigned + quarantined."""

    rows: int
    assigned: int
    quarantined: int
    quarantined_by_reason: dict[str, int]
    truncated_prompts: int
    evaluations: int
    candidate_forwards: int
    #: Over the rows that know theirs; None if none does.
    mean_initial_loss: float | None
    mean_loss: float | None


class Ledger(Generic[AnyShardedPlan]):
    """The shards of one run in one folder."""

    def __init__(self, folder: Store, plan: AnyShardedPlan) -> None:
        self.folder, self.plan = folder, plan

    def name(self, shard: int, revision: int = 0) -> str:
        return self.plan.part_name(shard, revision)

    def commit(self, task: Task, result: ShardResult) -> bool:
        """Publish what was made of a task, unless someone already has: then False, and ours is discarded.

        Raises RunFailed if it cannot be written.
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
        )
        content = encode_part(result.rows, about, self.plan.part_schema)
        name = self.name(task.shard, task.revision)
        try:
            return self.folder.create(name, content, written)
        except OSError as error:
            raise RunFailed(f"cannot write {self.folder.location}/{name}: {error.strerror or error}") from error

    def committed(self, task: Task) -> Footer | None:
        """What the part of a task says, if it is there."""
        name = self.name(task.shard, task.revision)
        return read_footer(self.folder, name) if self.folder.exists(name) else None

    def survey(self, retry_failures: bool = False, verify: bool = False) -> Survey:
        """What is left to do, and what is settled.

        A part that is damaged is removed, with the revisions on top of it, and is to be made again. With `retry_failures`
        so are the rows that are quarantined. What was not touched since it was written is whole, unless to `verify`.
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
        """The footers of a shard's parts up to the first that is damaged; that one and those after it are removed."""
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
                f"part {self.name(missing[0])} has gone from {self.folder.location}; run the same command again"
            )
        return shards

    def finish(self) -> Counts:
        """Once every shard is committed: write `failures.jsonl` from the parts and return the reconciled counts."""
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
        """The footers of each shard's parts, those of some shards in memory at a time."""
        for start in range(0, len(shards), SHARDS_AT_ONCE):
            group = shards[start : start + SHARDS_AT_ONCE]
            footers = iter(read_footers(self.folder, [name for names in group for name in names]))
            for names in group:
                yield [next(footers) for _ in names]
