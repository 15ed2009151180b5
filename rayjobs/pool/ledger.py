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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortho_core.errors import RunFailed, UserError
from ortho_core.records.parts import (
    FOOTERS_AT_ONCE,
    FORMAT,
    ShardResult,
    encode_part,
    part_name,
    parts_by_shard,
    read_about,
    read_abouts,
    read_part,
)
from ortho_core.storage.store import Store
from rayjobs.verb.plan import fingerprint

#: What a part file says of its rows that is summed over a run. A part of before there were candidates says nothing of them.
COUNTED = ("rows", "truncated_prompts", "evaluations", "candidate_forwards", "loss_sum", "initial_loss_sum")


@dataclass(frozen=True)
class Task:
    """What is left to do of one shard: all of it, or the rows that failed in the revisions before `revision`."""

    shard: int
    revision: int = 0
    only: frozenset[int] | None = None


class Ledger:
    """The shards of one run in one folder."""

    def __init__(self, folder: Store, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan

    @staticmethod
    def seal(plan: dict[str, Any]) -> dict[str, Any]:
        """The plan with its own fingerprint, which part files carry in their names."""
        return {"format": FORMAT, **plan, "run_fingerprint": fingerprint(plan)}

    def name(self, shard: int, revision: int = 0) -> str:
        return part_name(shard, self.plan["run_fingerprint"], revision)

    def commit(self, task: Task, result: ShardResult) -> bool:
        """Publish what was made of a task, unless someone already has: then False, and ours is discarded.

        Raises RunFailed if it cannot be written.
        """
        written = time.time()
        about = {
            "shard": task.shard,
            "revision": task.revision,
            "run_fingerprint": self.plan["run_fingerprint"],
            "written": written,
            "truncated_prompts": result.truncated_prompts,
            "evaluations": result.evaluations,
            "candidate_forwards": result.candidate_forwards,
            # An imported row may not know its losses.
            "loss_sum": sum(row["loss"] or 0.0 for row in result.rows),
            "initial_loss_sum": sum(row["initial_loss"] or 0.0 for row in result.rows),
            **result.about,
        }
        content = self.encode(result, about)
        name = self.name(task.shard, task.revision)
        try:
            return self.folder.create(name, content, written)
        except OSError as error:
            raise RunFailed(f"cannot write {self.folder.location}/{name}: {error.strerror or error}") from error

    def encode(self, result: ShardResult, about: dict[str, Any]) -> bytes:
        """The part file of a task."""
        config = self.plan["config"]
        return encode_part(result.rows, result.failures, about, config["store"], "reward" in config)

    def committed(self, task: Task) -> dict[str, Any] | None:
        """What the part of a task says, if it is there."""
        name = self.name(task.shard, task.revision)
        return read_about(self.folder, name) if self.folder.exists(name) else None

    def survey(self, retry_failures: bool = False) -> tuple[list[Task], int, int]:
        """What is left to do, and the (rows, quarantined rows) that are settled.

        A part that is damaged is removed, with the revisions on top of it, and is to be made again. With `retry_failures`
        so are the rows that are quarantined.
        """
        shards = parts_by_shard(self.plan, self.folder.names())
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            sound = pool.map(lambda item: self._sound(*item), enumerate(shards))
            todo, rows, quarantined = [], 0, 0
            for shard, (names, abouts) in enumerate(zip(shards, sound, strict=True)):
                if not abouts:
                    todo.append(Task(shard))
                    continue
                failed = frozenset(failure["row"] for failure in abouts[-1]["failures"])
                again = bool(failed) and (retry_failures or len(abouts) < len(names))
                if again:
                    todo.append(Task(shard, len(abouts), failed))
                rows += sum(about["rows"] for about in abouts) + (0 if again else len(failed))
                quarantined += 0 if again else len(failed)
        return todo, rows, quarantined

    def _sound(self, shard: int, names: list[str]) -> list[dict[str, Any]]:
        """The footers of a shard's parts up to the first that is damaged; that one and those after it are removed."""
        abouts: list[dict[str, Any]] = []
        for name in names:
            try:
                about = read_about(self.folder, name)
                if about["shard"] != shard:
                    raise UserError(f"{name} holds shard {about['shard']}")
                if self.folder.touched(name, about["written"]):
                    read_part(self.folder, name)
                abouts.append(about)
            except UserError:
                break
        for name in reversed(names[len(abouts) :]):
            self.folder.remove(name)
        return abouts

    def parts(self) -> list[list[str]]:
        """The part files of each shard. Raises RunFailed if a shard is not committed."""
        shards = parts_by_shard(self.plan, self.folder.names())
        missing = [shard for shard, names in enumerate(shards) if not names]
        if missing:
            raise RunFailed(
                f"part {self.name(missing[0])} has gone from {self.folder.location}; run the same command again"
            )
        return shards

    def finish(self) -> dict[str, Any]:
        """Once every shard is committed: write `failures.jsonl` from the parts and return the reconciled counts."""
        shards = self.parts()
        total: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as scratch:
            listing = Path(scratch) / "failures.jsonl"
            with listing.open("w") as stream:
                for start in range(0, len(shards), 1024):
                    group = shards[start : start + 1024]
                    abouts = iter(read_abouts(self.folder, [name for names in group for name in names]))
                    for names in group:
                        mine = [next(abouts) for _ in names]
                        for about in mine:
                            for key in COUNTED:
                                total[key] += about.get(key, 0)
                        for failure in mine[-1]["failures"]:
                            reasons[failure["reason"]] += 1
                            stream.write(json.dumps(failure) + "\n")
            self.folder.replace_file("failures.jsonl", listing)
        self.folder.sweep("part-")
        assigned, quarantined = total["rows"], sum(reasons.values())
        if assigned + quarantined != self.plan["rows"]:
            raise RuntimeError(f"{assigned} assigned + {quarantined} quarantined is not {self.plan['rows']} rows")
        return {
            "rows": self.plan["rows"],
            "assigned": assigned,
            "quarantined": quarantined,
            "quarantined_by_reason": dict(sorted(reasons.items())),
            "truncated_prompts": total["truncated_prompts"],
            "evaluations": total["evaluations"],
            "candidate_forwards": total["candidate_forwards"],
            "mean_initial_loss": total["initial_loss_sum"] / assigned if assigned else None,
            "mean_loss": total["loss_sum"] / assigned if assigned else None,
        }
