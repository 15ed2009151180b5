"""`ortho look`: inspects a pair set before training on it. Runs in this process; imports neither torch nor Ray."""

import time
from typing import Any

from ortho_core.errors import UserError
from ortho_core.pairs.rows import Failure
from ortho_core.pairs.survey.sample import look_at
from ortho_core.storage.local import LocalStore
from rayjobs.look.config import LookJob
from rayjobs.look.findings import find, sentences
from rayjobs.look.report import html_of
from rayjobs.reports.next_steps import next_command
from rayjobs.verb.console import Progress, say, summary_json
from rayjobs.verb.pairs import open_pairs

REPORT, SUMMARY = "report.html", "summary.json"


def describe(job: LookJob) -> dict[str, Any]:
    """What a dry run prints."""
    pairs = open_pairs(job.pairs, job.pair_fields())
    check_folder(job)
    return {"recognised": pairs.record(), "rows_looked_at": min(job.rows, pairs.rows()), "out": str(job.out)}


def run(job: LookJob) -> int:
    """Look at some rows. Returns 0, or 3 if some of them cannot be used. Raises UserError."""
    began = time.monotonic()
    folder = check_folder(job)
    pairs = open_pairs(job.pairs, job.pair_fields())
    progress = Progress("look", min(job.rows, pairs.rows()), "rows")
    outcomes, unusable = [], 0
    for one in look_at(pairs, job.rows):
        outcomes.append(one)
        unusable += isinstance(one, Failure)
        progress.advance(1, f"{unusable} cannot be used" if unusable else "")
    progress.close()
    findings, looked = find(pairs.record(), outcomes, job.size, time.monotonic() - began, job.framing())
    try:
        folder.replace(REPORT, html_of(job, pairs, findings, looked).encode())
        folder.replace(SUMMARY, summary_json({**findings.model_dump(), "config": job.model_dump(mode="json")}).encode())
    except OSError as error:
        raise UserError(f"cannot write to {job.out}: {error.strerror or error}") from error
    for sentence in sentences(findings, job.size):
        say(sentence)
    say(f"pictures and tables in {job.out / REPORT}")
    return 3 if unusable else 0


def check_folder(job: LookJob) -> LocalStore:
    """The output folder. Raises UserError if it contains other files: summaries of other verbs have the same name."""
    folder = LocalStore(job.out)
    if foreign := set(folder.entries()) - {REPORT, SUMMARY}:
        raise UserError(
            f"--out {job.out} was not made by `ortho look` (it contains {min(foreign)}); choose another folder"
        )
    return folder


def ending(job: LookJob, code: int) -> list[str]:
    """The last line of the command."""
    name = job.pairs.rstrip("/").rpartition("/")[2] or "em"
    return [next_command("em", pairs=job.pairs, model="MODEL", work_dir=f"runs/{name}")]
