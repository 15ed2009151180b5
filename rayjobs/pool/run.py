"""One run of a verb that writes a part file for each shard: it is begun or resumed, and concluded with its summary."""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Generic

from pydantic import BaseModel

from ortho_core.errors import RunFailed
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.noise.gaussianity import in_words, verdict
from ortho_core.records.diagnostics import write_gaussianity
from ortho_core.records.plan import FINGERPRINT
from rayjobs.pool.derived import REPORT, is_whole, is_whole_page, receipts_in
from rayjobs.pool.ledger import ASSIGN_SUMMARY, AnyShardedPlan, Counts, Ledger
from rayjobs.verb.console import say, summary_json
from rayjobs.verb.plan import claim


class ShardedRun(Generic[AnyShardedPlan]):
    """A run in the folder that it has claimed: its open tasks, its settled rows, and its summary."""

    def __init__(self, location: str, plan: AnyShardedPlan, retry_failures: bool = False, verify: bool = False) -> None:
        """Raises UserError if the folder belongs to another run."""
        self.plan, self.verify = plan, verify
        self.ledger = Ledger(claim(location, plan), plan)
        self.survey = self.ledger.survey(retry_failures, verify)
        self.started = time.monotonic()

    def is_complete(self, page: bool = False) -> bool:
        """Whether the run is complete and undamaged, with `page` also its report; prints a line if it is."""
        folder = self.ledger.folder
        if self.survey.todo or not is_whole(folder, ASSIGN_SUMMARY, self.verify):
            return False
        if page and not is_whole_page(folder, REPORT):
            return False
        say(f"{self.plan.verb}: {folder.location} is complete")
        return True

    @property
    def exit_code(self) -> int:
        """The exit code of a complete run."""
        return exit_code(self.survey.quarantined)

    def finish(self) -> Counts:
        """Stop the clock, write `failures.jsonl`, and count the rows. Raises RunFailed if a shard is not committed."""
        self.seconds = time.monotonic() - self.started
        self.counts = self.ledger.finish()
        return self.counts

    def check_noise(self, model: ModelFolder) -> dict[str, str]:
        """Write the statistics of all rows' noise as files, print the verdict, and return it as an entry of the summary.

        Does nothing if no row was assigned.
        """
        if not self.counts.assigned:
            return {}
        statistics = write_gaussianity(self.ledger.folder, model.latent_shape, model.image_size)
        say(f"{self.plan.verb}: {in_words(statistics)}")
        return {"gaussianity": verdict(statistics)}

    def summary(self, job: BaseModel, unknown: Collection[str] = (), **more: object) -> dict[str, Any]:
        """The content of `summary.json`: the counts without those named in `unknown`, `more`, the speed of this run, the job."""
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

        Raises RunFailed if no row was assigned; `nothing` is the end of the message after "none of the N".
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
