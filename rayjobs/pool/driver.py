"""The driver's side of the pool: hand out tasks, read receipts, quarantine, stop where too many rows fail."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ortho_core.errors import RunFailed
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.pairs import PairSet, Shard
from ortho_core.pairs.rows import Failure
from ortho_core.records.parts import ShardResult
from rayjobs.pool.ledger import Ledger, Task
from rayjobs.pool.worker import ShardActor, packed
from rayjobs.verb.console import Progress, say

#: Rows before which the share of quarantined ones says too little to end a run.
MANY_ROWS = 100


def work_through(
    job: Any,
    ledger: Ledger,
    pairs: PairSet,
    models: Sequence[ModelFolder],
    todo: list[tuple[Task, Shard]],
    rows: int,
    quarantined: int,
    worker: type[ShardActor] = ShardActor,
    verb: str = "assign",
) -> None:
    """Run the tasks through the pool; `rows` and `quarantined` are settled already. Raises RunFailed or UserError."""
    tasks = {task.shard: (task, shard) for task, shard in todo}
    progress = Progress(verb, ledger.plan["rows"], "rows", done=rows)
    loss, assigned, example = 0.0, 0, f"see {job.out}/failures.jsonl"
    for done in receipts(job, ledger.plan, pairs, models, todo, worker):
        task, shard = tasks[int(done["index"])]
        if done["error"]:
            raise RunFailed(str(done["error"]))
        if done["notes"]:
            say(f"{verb}: {done['notes']}")
        failures = [Failure(**f) for f in json.loads(done["failures"])]
        if failures and not task.revision:
            if shard.index == 0:
                reasons = ", ".join(sorted({f.reason for f in failures}))
                raise RunFailed(
                    f"every row of the first shard failed ({reasons}), so the run was ended; "
                    f"the first: {failures[0].message}"
                )
            ledger.commit(task, ShardResult(failures=failures))
        loss += done["loss"]
        assigned += done["assigned"]
        quarantined += done["quarantined"] + len(failures)
        units = shard.rows if task.only is None else len(task.only)
        rows += units
        example = done["example"] or (failures[0].message if failures else example)
        if rows >= MANY_ROWS and quarantined > job.max_failure_rate * rows:
            raise RunFailed(
                f"{quarantined:.0f} of {rows} rows so far are quarantined, more than --max-failure-rate "
                f"{job.max_failure_rate:g} allows; one of them: {example}"
            )
        note = f"mean loss {loss / assigned:.4f}" if assigned else ""
        progress.advance(units, note + (f", {quarantined:.0f} quarantined" if quarantined else ""))
    progress.close()


def receipts(
    job: Any,
    sealed: dict[str, Any],
    pairs: PairSet,
    models: Sequence[ModelFolder],
    todo: list[tuple[Task, Shard]],
    worker: type[ShardActor] = ShardActor,
) -> Iterator[dict[str, Any]]:
    """Run the tasks through a Ray Data actor pool, or one after the other in this process; yields a receipt for each, in order
    of completion.
    """
    if not job.pool_size[1]:
        own = worker(job, sealed, pairs, models, gpus=job.own_gpus(), decoder_cpus=0)
        yield from (own.work(task, shard) for task, shard in todo)
        return
    from rayjobs.pool.actors import Attempts, on_this_node, pooled

    least, most = (min(size, len(todo)) for size in job.pool_size)
    least = job.fitting(least, job.node_labels)
    arguments = {
        "job": job,
        "sealed": sealed,
        "pairs": pairs,
        "models": models,
        "gpus": job.gpus(),
        "decoder_cpus": job.spare_cpu(most) if job.cpus_per_decoder is None else job.cpus_per_decoder,
        "attempts": on_this_node(Attempts),
    }
    # A minute per evaluation, or forward, is slower than any machine of use.
    passes = job.steps + job.candidate_forwards
    patience_s = max(1800, 60 * passes * -(-sealed["rows_per_shard"] // (job.slots or 8)))
    yield from pooled(
        worker,
        arguments,
        [packed(task, shard) for task, shard in todo],
        (least, most),
        cpus=job.cpus_per_worker,
        gpus=job.gpus(),
        labels=job.node_labels,
        patience_s=patience_s,
    )
