"""One run of a verb that leaves part files of shards: begun or continued, and concluded with its summary."""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Generic

from pydantic import BaseModel

from ortho_core.errors import RunFailed
from ortho_core.noise.gaussianity import in_words, verdict
from ortho_core.records.diagnostics import write_gaussianity
from ortho_core.records.plan import FINGERPRINT
from rayjobs.pool.derived import REPORT, is_whole, is_whole_page, receipts_in
from rayjobs.pool.ledger import ASSIGN_SUMMARY, AnyShardedPlan, Counts, Ledger
from rayjobs.verb.console import say, summary_json
from rayjobs.verb.plan import claim


class ShardedRun(Generic[AnyShardedPlan]):
    """A run in the folder that it has claimed: what is left to do, what is settled, and its summary."""

    def __init__(self, location: str, plan: AnyShardedPlan, retry_failures: bool = False, verify: bool = False) -> None:
        """Raises UserError if the folder belongs to another run."""
        self.plan, self.verify = plan, verify
        self.ledger = Ledger(claim(location, plan), plan)
        self.survey = self.ledger.survey(retry_failures, verify)
        self.started = time.monotonic()

    def is_complete(self, page: bool = False) -> bool:
        """Whether there is nothing left to do, not even to mend, of the `page` too; prints that."""
        folder = self.ledger.folder
        if self.survey.todo or not is_whole(folder, ASSIGN_SUMMARY, self.verify):
            return False
        if page and not is_whole_page(folder, REPORT):
            return False
        say(f"{self.plan.verb}: {folder.location} is complete")
        return True

    @property
    def exit_code(self) -> int:
        """Of a run that is complete."""
        return exit_code(self.survey.quarantined)

    def finish(self) -> Counts:
        """Once every shard is committed: stop the clock, write `failures.jsonl`, count. Raises RunFailed if one is not."""
        self.seconds = time.monotonic() - self.started
        self.counts = self.ledger.finish()
        return self.counts

    def check_noise(self, latent_shape: tuple[int, int, int]) -> dict[str, str]:
        """The statistics of the noise of all rows, as files and as an entry of the summary; prints the verdict.

        Nothing where no row was assigned.
        """
        if not self.counts.assigned:
            return {}
        statistics = write_gaussianity(self.ledger.folder, latent_shape)
        say(f"{self.plan.verb}: {in_words(statistics)}")
        return {"gaussianity": verdict(statistics)}

    def summary(self, job: BaseModel, unknown: Collection[str] = (), **more: object) -> dict[str, Any]:
        """The content of `summary.json`: the counts but those that are `unknown`, `more`, the speed of this run, the job."""
        rows = self.plan.rows - self.survey.rows
        counts = {name: value for name, value in asdict(self.counts).items() if name not in unknown}
        content = {
            **counts,
            **more,
            "rows_this_run": rows,
            "seconds_this_run": round(self.seconds, 2),
            "rows_per_second": round(rows / self.seconds, 3) if rows else None,
            "config": job.model_dump(mode="json"),
            FINGERPRINT: self.plan.run_fingerprint,
        }
        return dict(json.loads(summary_json(content)))

    def conclude(self, summary: Mapping[str, object], nothing: str) -> int:
        """Write the summary, which marks the run as complete, and return the exit code.

        Raises RunFailed, which says `nothing` of all rows, if no row was assigned.
        """
        folder, counts = self.ledger.folder, self.counts
        files = {name: receipt.model_dump() for name, receipt in receipts_in(folder, ASSIGN_SUMMARY).items()}
        folder.replace(ASSIGN_SUMMARY, (json.dumps({**summary, "files": files}, indent=1) + "\n").encode())
        if not counts.assigned:
            raise RunFailed(f"none of the {counts.rows} {nothing}; see {folder.location}/failures.jsonl")
        return exit_code(counts.quarantined)


def exit_code(quarantined: int) -> int:
    """0, or 3 where rows were quarantined."""
    return 3 if quarantined else 0
