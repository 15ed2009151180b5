"""The driver's side of the pool: it sends out tasks, reads receipts, quarantines rows, and stops if too many rows fail."""

from collections.abc import Iterator, Sequence

from ortho_core.errors import RunFailed
from ortho_core.pairs.rows import Shard
from ortho_core.records.parts import ShardResult
from ortho_core.records.plan import ShardedPlan
from rayjobs.pool.ledger import Ledger, Survey
from rayjobs.pool.messages import Receipt, Work
from rayjobs.pool.protocol import PoolJob, Search
from rayjobs.pool.worker import OwnProcess, PoolWorker
from rayjobs.verb.console import Progress, say
from rayjobs.verb.faults import ElsewhereTraceback, Fault, traceback_kept

#: --max-failure-rate is applied from this number of rows on; the share of fewer rows means little.
MANY_ROWS = 100

#: A run ends if no shard is finished for this many seconds: the first is the minimum, the second is the time for each pass of
#: the slots that a shard may need. A minute per pass is slower than any useful machine.
NO_PROGRESS_S, PATIENCE_PER_PASS_S = 1800, 60


def work_through(
    job: PoolJob, ledger: Ledger[ShardedPlan], survey: Survey, shards: Sequence[Shard], search: Search
) -> None:
    """Process the survey's open tasks, which belong to `shards`, with the pool. Raises RunFailed or UserError."""
    verb, todo = ledger.plan.verb, {task.shard: Work(task, shards[task.shard]) for task in survey.todo}
    rows, quarantined = survey.rows, survey.quarantined
    workers = min(job.pool_size[1], len(todo))
    several = "1 worker, which loads" if workers == 1 else f"{workers} workers, which load"
    starting = f"starting {several} the model" if workers else "loading the model"
    progress = Progress(verb, ledger.plan.rows, "rows", done=rows, starting=starting)
    loss, assigned, example = 0.0, 0, f"see {job.out}/failures.jsonl"
    #: Shards that failed as a whole. Other workers finish them before the first shard, so they are not settled before it: if it
    #: fails as well, the run ends with nothing written, and all rows are tried again once the cause is mended.
    held: list[Receipt] = []
    first_is_open = 0 in todo and not todo[0].task.revision
    for receipt in receipts(job, ledger, list(todo.values()), search):
        work, failures = todo[receipt.shard], receipt.failures
        if receipt.notes:
            say(f"{verb}: {receipt.notes}")
        if receipt.fault is not None:
            raise failed(job, receipt.fault, verb, receipt.slots, receipt.traceback)
        if failures and not work.task.revision:
            if work.shard.index == 0:
                reasons = ", ".join(sorted({f.reason for f in failures}))
                raise RunFailed(
                    f"every row of the first shard failed ({reasons}), so the run was ended; first row: {failures[0].message}"
                )
            held.append(receipt)
        first_is_open = first_is_open and work.shard.index != 0
        while held and not first_is_open:
            one = held.pop()
            ledger.commit(todo[one.shard].task, ShardResult(failures=list(one.failures)))
        loss += receipt.loss
        assigned += receipt.assigned
        quarantined += receipt.quarantined + len(failures)
        rows += work.rows
        example = receipt.example or (failures[0].message if failures else example)
        if rows >= MANY_ROWS and quarantined > job.max_failure_rate * rows:
            raise RunFailed(
                f"{quarantined} of {rows} rows so far are quarantined, more than --max-failure-rate "
                f"{job.max_failure_rate:g} allows; one of them: {example}"
            )
        note = f"mean loss {loss / assigned:.4f}" if assigned else ""
        progress.advance(work.rows, note + (f", {quarantined} quarantined" if quarantined else ""))
    progress.close()


def failed(job: object, fault: Fault, verb: str, slots: int, traceback: str) -> RunFailed:
    """The error that ends the run, made from a worker's fault: with options that need less memory, or with its traceback."""
    if not fault.unexpected:
        return RunFailed(fault.remedied(job, slots))
    cause = ElsewhereTraceback(traceback)
    error = RunFailed(f"a worker failed: {fault.said}; {traceback_kept(cause, verb)}")
    error.__cause__ = cause
    return error


def receipts(job: PoolJob, ledger: Ledger[ShardedPlan], todo: list[Work], search: Search) -> Iterator[Receipt]:
    """Run tasks in a Ray Data actor pool, or one by one in this process; yields their receipts in order of completion."""
    threads = max(1, int(job.cpus_per_worker))
    if not job.pool_size[1]:
        worker = PoolWorker(search, ledger, OwnProcess(job.own_device(), threads))
        yield from map(worker.work, todo)
        return
    from rayjobs.pool.actors import CountedBesideTheDriver, PoolActor, pooled

    least, most = (min(size, len(todo)) for size in job.pool_size)
    least = job.fitting(least)
    arguments = {
        "search": search,
        "ledger": ledger,
        "device": job.worker_device(),
        "threads": threads,
        "decoder_cpus": job.spare_cpu(most) if job.cpus_per_decoder is None else job.cpus_per_decoder,
        "attempts": CountedBesideTheDriver(),
    }
    done = pooled(
        PoolActor,
        arguments,
        [work.to_row() for work in todo],
        (least, most),
        cpus=job.cpus_per_worker,
        gpus=job.gpus(),
        labels=job.node_labels,
        patience_s=max(NO_PROGRESS_S, PATIENCE_PER_PASS_S * search.passes),
        job=job,
    )
    yield from map(Receipt.of_row, done)
