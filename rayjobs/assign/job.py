"""The E-step job: `ortho assign` gives every image of a pair set the noise that the model maps closest to it.

A Ray Data actor pool works through shards of rows; each actor holds the model, and publishes one part file per shard.
"""

import math
import time
from typing import Any

from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, settings
from ortho_core.pairs import PairSet, Shard
from ortho_core.records.assignments import Assignments
from ortho_core.records.diagnostics import write_gaussianity
from rayjobs.assign.config import AssignJob
from rayjobs.pool.driver import work_through
from rayjobs.pool.ledger import Ledger
from rayjobs.pool.worker import ShardActor
from rayjobs.verb.console import say, summary_json
from rayjobs.verb.paths import located
from rayjobs.verb.plan import claim, differences


def make_plan(job: AssignJob, model: ModelFolder) -> tuple[dict[str, Any], PairSet, list[Shard]]:
    """What the run will do, from the input alone. Raises UserError for whatever can be found wrong beforehand."""
    job.space(model.latent_shape)
    pairs = PairSet(job.pairs, job.pair_fields())
    rows_per_shard = job.rows_per_shard or pairs.rows_per_shard()
    shards = pairs.shards(rows_per_shard)
    plan = {
        "pairs_fingerprint": pairs.fingerprint(),
        "model_fingerprint": model.fingerprint,
        "config": settings(job, decides),
        "warm_start": None,
        "rows": pairs.rows(),
        "rows_per_shard": rows_per_shard,
        "shards": len(shards),
    }
    if job.warm_start:
        plan["warm_start"] = check_warm_start(job, plan)
    return Ledger.seal(plan), pairs, shards


def check_warm_start(job: AssignJob, plan: dict[str, Any]) -> str:
    """The fingerprint of the assignments to start from. Raises UserError, naming what differs, if they do not fit."""
    assert job.warm_start is not None
    earlier = Assignments(job.warm_start).plan
    names = ("seed", "transform", "patch_size", "regions")
    whole = ("rows_per_shard", "pairs_fingerprint")
    before = {n: earlier["config"][n] for n in names} | {n: earlier[n] for n in whole}
    now = {n: plan["config"][n] for n in names} | {n: plan[n] for n in whole}
    if job.candidates > 1:  # the noise stays what the earlier run chose, from as many as are asked for
        before["candidates"], now["candidates"] = earlier["config"].get("candidates", 1), job.candidates
    if differing := differences(before, now):
        raise UserError(f"--warm-start {job.warm_start} does not fit this run: " + "; ".join(differing))
    return str(earlier["run_fingerprint"])


def plan(job: AssignJob) -> dict[str, Any]:
    """What a dry run prints; times a few evaluations on a worker like those of the run."""
    from rayjobs.pool.timing import seconds_per_evaluation

    model = ModelFolder.open(job.model)
    content, _, _ = make_plan(job, model)
    C, H, W = shape = model.latent_shape
    numbers = 0 if job.transform == "free" else job.space(shape).parameters
    record = 200 + 4 * numbers + 4 * math.prod(model.target_shape) * job.store_latents
    if job.store == "noise":
        record += 2 * C * H * W
    elif job.transform == "free":
        record += 4 * C * H * W
    draws = 0 if job.warm_start else 1
    evaluations = job.evaluations_at_most(content["rows"], draws)
    timing = seconds_per_evaluation(job, model, content["rows_per_shard"], ShardActor)
    hours = evaluations * timing["seconds_per_evaluation"] / 3600
    return {
        **content,
        "evaluations_at_most": evaluations,
        "candidate_forwards": content["rows"] * job.candidate_forwards * draws,
        **timing,
        f"{'gpu' if timing['device'] == 'cuda' else 'worker'}_hours_at_most": round(
            hours * (timing["gpus_per_worker"] or 1), 3
        ),
        "hours_at_most": round(hours / min(max(1, job.pool_size[1]), content["shards"]), 3),
        "bytes_to_write_about": content["rows"] * record,
        "out": job.out,
    }


def run(job: AssignJob, model: ModelFolder | None = None) -> int:
    """Assign what is not assigned yet; `model` is the job's, where the caller has opened it.

    Returns 0, or 3 if rows were quarantined. Raises UserError or RunFailed.
    """
    model = model or ModelFolder.open(job.model)
    job = located(job)
    sealed, pairs, shards = make_plan(job, model)
    folder = claim(job.out, sealed, "assign")
    ledger = Ledger(folder, sealed)
    todo, rows, quarantined = ledger.survey(job.retry_failures)
    if not todo and folder.exists("summary.json"):
        say(f"assign: {job.out} is complete")
        return 3 if quarantined else 0
    started = time.monotonic()
    if todo:
        with job.session():
            work_through(job, ledger, pairs, [model], [(task, shards[task.shard]) for task in todo], rows, quarantined)
    seconds = time.monotonic() - started
    return conclude(job, model, ledger, sealed["rows"] - rows, seconds)


def conclude(job: AssignJob, model: ModelFolder, ledger: Ledger, rows_this_run: int, seconds: float) -> int:
    """Reconcile, look at the noise as a whole, write the summary. Returns the exit code."""
    counts = ledger.finish()
    if counts["assigned"]:
        counts["gaussianity"] = write_gaussianity(ledger.folder, model.latent_shape)
        say(f"assign: {counts['gaussianity']}")
    summary = {
        **counts,
        "rows_this_run": rows_this_run,
        "seconds_this_run": round(seconds, 2),
        "rows_per_second": round(rows_this_run / seconds, 3) if rows_this_run else None,
        "config": job.model_dump(mode="json"),
        "run_fingerprint": ledger.plan["run_fingerprint"],
    }
    ledger.folder.replace("summary.json", summary_json(summary).encode())
    if not counts["assigned"]:
        raise RunFailed(f"none of the {counts['rows']} rows could be assigned; see {job.out}/failures.jsonl")
    return 3 if counts["quarantined"] else 0
